"""A dataset for demonstrations, made of the running Python's own standard library.

Documentation strings are labelled with the chapter of the library reference that describes their
module; function bodies are cut into tokens, each labelled with its type. Source files are parsed,
never imported, nothing is downloaded, and one Python version always gives the same bytes.
"""

from __future__ import annotations

import ast
import builtins
import io
import json
import keyword
import re
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actstore.errors import DatasetError, ResourceError

__all__ = [
    "CHAPTERS",
    "TOKEN_TYPES",
    "DemoDataset",
    "label_tokens",
    "split_prose",
    "write_demo_dataset",
]

# Chapter -> modules, as in the library reference of Python 3.12. Frozen: the reference moves
# modules now and then, and labels should not. Parts of the reference whose modules are written
# in C, or that some installations lack (tkinter), are left out.
_MODULES = {
    "Text Processing": "difflib re rlcompleter string stringprep textwrap",
    "Data Types": "bisect calendar collections copy datetime enum graphlib heapq pprint reprlib "
    "types weakref zoneinfo",
    "Numeric and Mathematical": "decimal fractions numbers random statistics",
    "File and Directory Access": "filecmp fileinput fnmatch glob linecache os.path pathlib shutil "
    "stat tempfile",
    "File Formats": "configparser csv netrc plistlib tomllib",
    "Data Compression and Archiving": "bz2 gzip lzma tarfile zipfile",
    "Operating System Services": "argparse ctypes curses getopt getpass io logging os platform "
    "time",
    "Concurrent Execution": "concurrent multiprocessing queue sched subprocess threading",
    "Networking": "asyncio selectors signal socket ssl",
    "Internet Data Handling": "base64 email json mailbox mimetypes quopri",
    "Internet Protocols": "ftplib http imaplib ipaddress poplib smtplib socketserver urllib uuid "
    "webbrowser wsgiref xmlrpc",
    "Structured Markup": "html xml",
}
CHAPTERS: Mapping[str, str] = {
    module: chapter for chapter, modules in _MODULES.items() for module in modules.split()
}
# Files whose module is documented under another name.
_DOCUMENTED_AS = {
    "_collections_abc": "collections",
    "_compression": "gzip",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "_strptime": "time",
    "_threading_local": "threading",
    "_weakrefset": "weakref",
    "genericpath": "os.path",
    "ntpath": "os.path",
    "posixpath": "os.path",
}
_SKIPPED_FOLDERS = {"test", "tests", "__pycache__"}

TOKEN_TYPES = ("BUILTIN", "COMMENT", "KEYWORD", "NAME", "NUMBER", "OP", "STRING")
# What the site module and IPython add for interactive use.
_NOT_BUILTIN = {"copyright", "credits", "exit", "help", "license", "quit", "display", "get_ipython"}
_BUILTINS = {name for name in dir(builtins) if name[0] != "_"} - _NOT_BUILTIN

# Python 3.12 divides a formatted string into several tokens, earlier versions do not; 3.14 does
# the same for template strings. The numbers are the change of nesting.
_STRING_PARTS = {
    getattr(tokenize, prefix + part): step
    for prefix in ("FSTRING_", "TSTRING_")
    for part, step in (("START", 1), ("MIDDLE", 0), ("END", -1))
    if hasattr(tokenize, prefix + part)
}

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Row = dict[str, Any]

MIN_WORDS, MAX_WORDS = 10, 70
MIN_TOKENS, MAX_TOKENS = 16, 120
MAX_PER_CHAPTER = 320
MAX_SNIPPETS = 600


@dataclass(frozen=True)
class DemoDataset:
    """The two JSON Lines files of the demonstration.

    `docstrings`: columns text, chapter, module. `code`: columns text, words, token_type, module;
    `words` are the tokens of the text in order, `token_type` one of `TOKEN_TYPES` each.
    """

    docstrings: Path
    code: Path
    n_docstrings: int
    n_snippets: int


def write_demo_dataset(path: Path) -> DemoDataset:
    """Write `docstrings.jsonl` and `code.jsonl` into the folder `path`, which is made if needed.

    Raises DatasetError if this Python was installed without its library's source files, and
    ResourceError if the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    docstrings: dict[str, _Row] = {}
    snippets: dict[str, _Row] = {}
    for file, module in _library_files():
        source, tree = _parse(file)
        for text in _docstring_texts(tree):
            row: _Row = {"text": text, "chapter": CHAPTERS[module], "module": module}
            docstrings.setdefault(text, row)
        for text in _function_bodies(source, tree):
            # Tokens are at least as many as words, save in long comments and strings.
            labelled = label_tokens(text) if len(text.split()) <= MAX_TOKENS else []
            if MIN_TOKENS <= len(labelled) <= MAX_TOKENS:
                words, types = zip(*labelled, strict=True)
                row = {"text": text, "words": words, "token_type": types, "module": module}
                snippets.setdefault(text, row)
    chosen_docstrings = [
        row
        for chapter in _MODULES
        for row in _spread(
            [row for row in docstrings.values() if row["chapter"] == chapter], MAX_PER_CHAPTER
        )
    ]
    chosen_snippets = _spread(list(snippets.values()), MAX_SNIPPETS)
    if not chosen_docstrings or not chosen_snippets:
        raise DatasetError(
            f"{_library()}: holds no Python source files to make the demo dataset of: use a Python "
            "installed with its standard library as .py files"
        )
    result = DemoDataset(
        path / "docstrings.jsonl", path / "code.jsonl", len(chosen_docstrings), len(chosen_snippets)
    )
    try:
        _write_jsonl(result.docstrings, chosen_docstrings)
        _write_jsonl(result.code, chosen_snippets)
    except OSError as error:
        raise _unwritable(path, error) from error
    return result


def _unwritable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"{path}: cannot be written ({error.strerror}): name another folder")


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _library_files() -> Iterator[tuple[Path, str]]:
    """Source files of the documented modules, with the name each is documented under."""
    for entry in sorted(_library().glob("*")):
        module = _DOCUMENTED_AS.get(entry.stem, entry.stem)
        if module not in CHAPTERS:  # site-packages among them: not ours, and huge
            continue
        for file in sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]:
            folders = file.relative_to(_library()).parts[:-1]
            if file.suffix == ".py" and not _SKIPPED_FOLDERS.intersection(folders):
                yield file, module


def _parse(file: Path) -> tuple[str, ast.Module]:
    with tokenize.open(file) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library are not our user's concern
        source = opened.read()
        return source, ast.parse(source)


def _spread(rows: Sequence[_Row], limit: int) -> list[_Row]:
    """At most `limit` rows, evenly spaced over all of them."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[number * len(rows) // limit] for number in range(limit)]


def _write_jsonl(path: Path, rows: Iterable[_Row]) -> None:
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    unfinished.replace(path)


# --- documentation strings -------------------------------------------------------------------


def _docstring_texts(tree: ast.Module) -> Iterator[str]:
    for node in (tree, *_definitions(tree)):
        for text in split_prose(ast.get_docstring(node) or ""):
            if len(text.split()) >= MIN_WORDS:
                yield text.strip("\n")


def _definitions(node: ast.AST) -> Iterator[_Definition]:
    """Classes and functions at any depth, in the order of the source."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield child
        if not isinstance(child, ast.expr):  # most nodes are; they hold no definitions
            yield from _definitions(child)


_SESSION = re.compile(r"^[^\S\n]*>>>", re.MULTILINE)


def split_prose(docstring: str) -> Iterator[str]:
    """Texts of at most 70 words: paragraphs, as many together as fit. Longer paragraphs are divided
    between lines; interactive sessions are left out."""
    text = ""
    for paragraph in re.split(r"\n[^\S\n]*\n", docstring):
        paragraph = _SESSION.split(paragraph)[0]
        whole = len(paragraph.split()) <= MAX_WORDS
        for piece in [paragraph] if whole else paragraph.split("\n"):
            joined = f"{text}\n\n{piece}" if whole else f"{text}\n{piece}"
            if len(joined.split()) <= MAX_WORDS:
                text = joined
                continue
            yield text
            text = piece
    yield text


# --- source code -----------------------------------------------------------------------------


def _function_bodies(source: str, tree: ast.Module) -> Iterator[str]:
    """The lines of each function after its signature and documentation string."""
    lines = source.split("\n")
    for node in _definitions(tree):
        if not isinstance(node, ast.ClassDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                first = min([body[0].lineno, *_decorator_lines(body[0])])
                last = body[-1].end_lineno or body[-1].lineno
                snippet = lines[first - 1 : last]
                # A statement on the line of the signature is not a body of its own.
                if snippet[body[0].lineno - first].encode()[: body[0].col_offset].isspace():
                    yield textwrap.dedent("\n".join(snippet)).strip("\n")


def _decorator_lines(node: ast.stmt) -> list[int]:
    return [decorator.lineno for decorator in getattr(node, "decorator_list", [])]


def label_tokens(text: str) -> list[tuple[str, str]]:
    """Tokens of Python source in order, each as it is written and with its type.

    Tokens that are no visible text (line ends, indentation) are left out. A formatted string is
    one STRING, whatever it holds, in all Python versions. Empty if the text cannot be tokenised.
    """
    try:
        tokens = [
            token
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.string.strip() or token.type in _STRING_PARTS
        ]
    except (tokenize.TokenError, SyntaxError):  # IndentationError included
        return []
    labelled: list[tuple[str, str]] = []
    cursor, string_start, depth = 0, 0, 0
    for number, token in enumerate(tokens):
        # Not by the token's own columns: 3.12 counts some in bytes.
        written = _as_written(token, text, cursor)
        begin = text.find(written, cursor)
        if begin < 0:
            return []
        cursor = begin + len(written)
        step = _STRING_PARTS.get(token.type)
        if step == 1 and depth == 0:
            string_start = begin
        depth += step or 0
        if depth == 0 and step is not None:
            labelled.append((text[string_start:cursor], "STRING"))
        elif depth == 0:
            before = tokens[number - 1].string if number else ""
            after = tokens[number + 1].string if number + 1 < len(tokens) else ""
            labelled.append((written, _token_type(token, before, after)))
    return labelled


def _as_written(token: tokenize.TokenInfo, text: str, cursor: int) -> str:
    """The source of a token: the inner text of a formatted string has its braces undoubled."""
    if _STRING_PARTS.get(token.type) == 0:
        doubled = token.string.replace("{", "{{").replace("}", "}}")
        if text.startswith(doubled, cursor):
            return doubled
    return token.string


def _token_type(token: tokenize.TokenInfo, before: str, after: str) -> str:
    if token.type != tokenize.NAME:
        return tokenize.tok_name[token.type]
    if keyword.iskeyword(token.string):
        return "KEYWORD"
    # obj.open, open = ... and f(open=...) name something else than the builtin.
    if token.string in _BUILTINS and before != "." and after != "=":
        return "BUILTIN"
    return "NAME"
