"""The card for machines: a version of a data set in the Croissant 1.1 format (JSON-LD).

The specification is http://mlcommons.org/croissant/1.1. Statistics are annotations, provenance is in the words of
PROV-O, limits are in those of the Responsible AI extension, all as the specification recommends.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

from bind_core.splits import Split
from storage.card_facts import Array, ChannelStatistics, DatasetFacts
from storage.columns import Column

Json = dict[str, Any]

_CONTEXT: Json = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "annotation": "cr:annotation",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "ddi-stats": "http://rdf-vocabulary.ddialliance.org/cv/SummaryStatisticType/2.1.2/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "excludes": "cr:excludes",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "readLines": "cr:readLines",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "sdVersion": "cr:sdVersion",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
    "unArchive": "cr:unArchive",
    "wd": "http://www.wikidata.org/entity/",
}

_CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
_NPZ = "https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"
"""Media type of the samples: there is no registered one, so that it is the page that defines the format."""
_SAMPLES = "samples"
_SPLITS = "splits"
_ARRAYS = "sample_arrays"
_ALL_FILES = "sample-files"

_DATA_TYPES = {
    pl.String: ["sc:Text"],
    pl.Int32: ["sc:Integer", "cr:Int32"],
    pl.Int64: ["sc:Integer", "cr:Int64"],
    pl.Float64: ["sc:Float", "cr:Float64"],
    pl.Datetime: ["sc:DateTime"],
}
_SPLIT_TERMS = {Split.TRAIN: "cr:TrainingSplit", Split.TEST: "cr:TestSplit"}
_STATISTICS: dict[str, Json] = {
    "min": {"dataType": "sc:Float", "equivalentProperty": "sc:minValue"},
    "max": {"dataType": ["sc:Float", "ddi-stats:8321e79"], "equivalentProperty": "sc:maxValue"},
    "mean": {"dataType": ["sc:Float", "ddi-stats:7975ed0"]},
    "std": {"dataType": ["sc:Float", "wd:Q159375"]},
}


@dataclass(frozen=True)
class CardFile:
    """A single file that belongs to a data set."""

    path: str
    """Relative to the root."""
    bytes: int
    sha256: str
    media_type: str
    description: str


def croissant(facts: DatasetFacts, table: CardFile, others: Iterable[CardFile] = ()) -> Json:
    """Return the description of a version in the Croissant format.

    Parameters
    ----------
    facts : DatasetFacts
        What there is to say.
    table : CardFile
        The version's rows, as Parquet.
    others : iterable of CardFile
        Further files that belong to the data set.

    Returns
    -------
    dict
        JSON-LD; paths in it are relative to the data set's root.
    """
    publication = facts.publication
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": facts.name,
        "description": facts.description,
        "conformsTo": _CONFORMS_TO,
        "version": facts.release,
        "license": publication.license,
        "url": publication.url,
        "creator": [{"@type": "sc:Person", "name": name} for name in publication.creators],
        "citeAs": facts.citation,
        "keywords": ["cosmology", "simulations", "dark matter", "baryons", "haloes", facts.config.set_name],
        "dateCreated": facts.created_at.isoformat(),
        "dateModified": facts.modified_at.isoformat(),
        "datePublished": f"{facts.published_at:%Y-%m-%d}",
        "isLiveDataset": False,
        "identifier": _identifiers(facts),
        "rai:dataLimitations": facts.limits,
        "prov:wasGeneratedBy": _runs(facts),
        "prov:wasDerivedFrom": _sources(facts),
        "distribution": [_file(table), *map(_file, others), *_file_sets(facts)],
        "recordSet": [_splits(facts), _samples(facts, table), _arrays(facts)],
    }
    return {name: value for name, value in described.items() if value not in ("", [])}


def _identifiers(facts: DatasetFacts) -> list[Json]:
    """Return what tells this version from any other."""
    config = facts.config
    values = {
        "manifest version": facts.version.number,
        "version of the simulations table": facts.version.simulations_number,
        "configuration digest": config.digest,
        "root seed": config.root_seed,
        "tags": ", ".join(facts.version.tags),
    }
    return [
        {"@type": "sc:PropertyValue", "propertyID": name, "value": value}
        for name, value in values.items()
        if value != ""
    ]


def _runs(facts: DatasetFacts) -> list[Json]:
    return [
        {
            "@type": "prov:Activity",
            "prov:label": f"bind-data {row['code_version']}, run {row['run_id']}: {row['samples']:,} samples",
            "prov:startedAtTime": row["first"].isoformat(),
            "prov:endedAtTime": row["last"].isoformat(),
        }
        for row in facts.runs.iter_rows(named=True)
    ]


def _sources(facts: DatasetFacts) -> list[Json]:
    return [
        {
            "@type": "prov:Entity",
            "prov:label": f"simulation {row['simulation']}",
            "identifier": {
                "@type": "sc:PropertyValue",
                "propertyID": "digest of the inputs",
                "value": row["inputs_digest"],
            },
        }
        for row in facts.sources.iter_rows(named=True)
    ]


def _file(file: CardFile) -> Json:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "description": file.description,
        "contentUrl": file.path,
        "contentSize": f"{file.bytes} B",
        "encodingFormat": file.media_type,
        "sha256": file.sha256,
    }


def _file_sets(facts: DatasetFacts) -> list[Json]:
    bytes_of = dict(facts.samples.group_by("split").agg(pl.col("bytes").sum()).rows())
    present = list(facts.split_counts)
    checksums = f"Their SHA-256 are in the column sha256 of {_SAMPLES}; a file that has no row there is no sample."
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": f"{split}-files",
            "name": f"{split} samples",
            "description": f"{facts.split_counts[split]:,} files with {bytes_of[split]:,} bytes. {checksums}",
            "encodingFormat": _NPZ,
            "includes": f"{split}/sim_*/*.npz",
        }
        for split in present
    ]
    everything = {
        "@type": "cr:FileSet",
        "@id": _ALL_FILES,
        "name": "all samples",
        "description": f"{facts.samples.height:,} files with {facts.bytes:,} bytes. {checksums}",
        "encodingFormat": _NPZ,
        "includes": [f"{split}/sim_*/*.npz" for split in present],
    }
    return [*sets, everything]


def _splits(facts: DatasetFacts) -> Json:
    return {
        "@type": "cr:RecordSet",
        "@id": _SPLITS,
        "name": _SPLITS,
        "description": "How the simulations are divided.",
        "dataType": "cr:Split",
        "key": {"@id": f"{_SPLITS}/name"},
        "field": [
            _plain_field(f"{_SPLITS}/name", "Name of the split.", "sc:Text"),
            _plain_field(f"{_SPLITS}/url", "What it is for.", "sc:URL"),
            _plain_field(f"{_SPLITS}/samples", "Number of samples.", "sc:Integer"),
        ],
        "data": [
            {
                f"{_SPLITS}/name": split.value,
                f"{_SPLITS}/url": _SPLIT_TERMS[split],
                f"{_SPLITS}/samples": facts.split_counts.get(split, 0),
            }
            for split in Split
        ],
    }


def _samples(facts: DatasetFacts, table: CardFile) -> Json:
    return {
        "@type": "cr:RecordSet",
        "@id": _SAMPLES,
        "name": _SAMPLES,
        "description": "A record for each sample: what it shows, where its file is, and how it was made.",
        "key": {"@id": f"{_SAMPLES}/sample_id"},
        "annotation": [
            {
                "@type": "cr:Field",
                "@id": f"{_SAMPLES}/count",
                "name": "count",
                "value": facts.samples.height,
                "dataType": ["sc:Integer", "wd:Q4049983"],
            }
        ],
        "field": [_column(facts, column, table) for column in facts.columns],
    }


def _column(facts: DatasetFacts, column: Column, table: CardFile) -> Json:
    identity = f"{_SAMPLES}/{column.name}"
    field = _plain_field(identity, column.description, _DATA_TYPES[column.dtype.base_type()], column.unit)
    field["source"] = {"fileObject": {"@id": table.path}, "extract": {"column": column.name}}
    if column.name == "split":
        field["references"] = {"field": {"@id": f"{_SPLITS}/name"}}
    if column.name in facts.mass_columns:
        values = facts.samples[column.name]
        numbers = {"min": values.min(), "max": values.max(), "mean": values.mean(), "std": values.std(ddof=0)}
        field["annotation"] = [_statistic(identity, column.name, kind, value) for kind, value in numbers.items()]
    return field


def _arrays(facts: DatasetFacts) -> Json:
    return {
        "@type": "cr:RecordSet",
        "@id": _ARRAYS,
        "name": _ARRAYS,
        "description": "A record for each sample's file: the arrays in it.",
        "key": {"@id": f"{_ARRAYS}/path"},
        "field": [
            _plain_field(f"{_ARRAYS}/path", "The file; as the column path of the samples.", "sc:Text")
            | {"source": {"fileSet": {"@id": _ALL_FILES}, "extract": {"fileProperty": "fullpath"}}},
            *(_array(facts, array) for array in facts.arrays),
        ],
    }


def _array(facts: DatasetFacts, array: Array) -> Json:
    identity = f"{_ARRAYS}/{array.name}"
    description = array.description
    if array.name == "params" and facts.parameters:
        description += f" They are: {', '.join(facts.parameters)}."
    data_type = "sc:Text" if array.dtype == "str" else ["sc:Float", f"cr:{array.dtype.capitalize()}"]
    field = _plain_field(identity, description, data_type, array.unit)
    if array.shape:
        shape = ",".join("-1" if extent is None else str(extent) for extent in array.shape)
        field |= {"isArray": True, "arrayShape": shape}
    field["source"] = {"fileSet": {"@id": _ALL_FILES}, "extract": {"column": array.name}}
    annotations = [
        _statistic(
            identity if found.channel is None else f"{identity}/{found.channel}",
            _what(found),
            kind,
            getattr(found, kind),
        )
        for found in facts.channels
        if found.array == array.name
        for kind in ("mean", "std")
    ]
    return field | ({"annotation": annotations} if annotations else {})


def _what(found: ChannelStatistics) -> str:
    return f"{found.transform} of {found.name}, over all pixels of the train split"


def _statistic(identity: str, of: str, kind: str, value: Any) -> Json:
    return {
        "@type": "cr:Field",
        "@id": f"{identity}/{kind}",
        "name": f"{kind} of {of}",
        "value": value,
        **_STATISTICS[kind],
    }


def _plain_field(identity: str, description: str, data_type: str | list[str], unit: str = "") -> Json:
    field: Json = {
        "@type": "cr:Field",
        "@id": identity,
        "name": identity.rpartition("/")[2],
        "description": f"{description} Unit: {unit}." if unit else description,
        "dataType": data_type,
    }
    return field | ({"unitText": unit} if unit else {})
