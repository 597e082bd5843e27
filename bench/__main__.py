"""All benchmarks: ``make bench``. Prints tables of ratios, with the figures as JSON beside them."""

import argparse
import json
from pathlib import Path

from bench import kernels, manifest_scale, normalization, program, readers


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description="Run all benchmarks.")
    parser.add_argument("--particles", type=int, default=256, help="particles per side [256]")
    parser.add_argument("--largest", type=int, default=512, help="particles per side of the largest run [512]")
    parser.add_argument("--json", type=Path, default=program.DATA / "results.json", help="where the figures go")
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    results = {"kernels": kernels.measure(options.particles)}
    print(kernels.table(results["kernels"]), flush=True)
    options.json.write_text(json.dumps(results, indent=2))
    sides = tuple(side for side in program.SIDES if side <= options.largest)
    results["program"] = program.measure(sides, options.particles)
    print(program.table(results["program"]), flush=True)
    options.json.write_text(json.dumps(results, indent=2))
    results["manifest"] = manifest_scale.measure(manifest_scale.SIMULATIONS, manifest_scale.HALOS)
    print(manifest_scale.table(results["manifest"]), flush=True)
    options.json.write_text(json.dumps(results, indent=2))
    results["readers"] = readers.measure()
    print(readers.table(results["readers"]))
    options.json.write_text(json.dumps(results, indent=2))
    results["normalization"] = normalization.measure()
    print(normalization.table(results["normalization"]), flush=True)
    options.json.write_text(json.dumps(results, indent=2))
    print(f"The figures are in {options.json}")


if __name__ == "__main__":
    main()
