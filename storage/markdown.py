"""Text from data in a page of Markdown: it shows as it is, and is no markup."""

import re

_WORD_JOINER = "\N{WORD JOINER}"
_TAG_OR_LINK = re.compile(r"<(?=[A-Za-z/!?])|\](?=\()")
_CODE = re.compile(r"(`[^`]*`)")


def shown_text(value: object) -> str:
    """Return text for a page: neither HTML, nor a link or picture, nor more than one line.

    What stands between two backticks is set as code, as in all messages.
    """
    text = re.sub("`+", "`", " ".join(str(value).split()))
    parts = _CODE.split(text)
    return "".join(part if _CODE.fullmatch(part) else _escaped(part) for part in parts)


def shown_code(value: object) -> str:
    """Return text that is set as code, whatever is in it."""
    text = " ".join(str(value).split()).replace("`", "'")
    return f"`{text}`"


def shown_either_way(value: object) -> str:
    """Return text for a page that may or may not read it as Markdown.

    Escapes would show where it is not read. So tags, links and pictures are taken apart by a character without width.
    """
    return _TAG_OR_LINK.sub(rf"\g<0>{_WORD_JOINER}", " ".join(str(value).split()))


def shown_cell(value: object) -> str:
    """Return text for a cell of a table."""
    return shown_text(value).replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"([\\\[*`])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
