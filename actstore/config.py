"""What each command can be asked to do: one frozen dataclass per command.

A dataclass is the only place that says which options a command has. Its field names are the
option names (with hyphens) and the keys of a run file; its annotations say what a value may be;
its defaults are the defaults; its metadata carries the help text. Command line, run files, help
and validation are derived from it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal

from actstore.errors import UnknownNameError
from actstore.option import About, Items, Rule
from actstore.site import Site

__all__ = [
    "COMMANDS",
    "DemoRun",
    "ExtractRun",
    "InfoRun",
    "PredictRun",
    "ProbeRun",
    "ReportRun",
    "Run",
    "VerifyRun",
    "command_of",
]


def _filled(text: str) -> str | None:
    return None if text.strip() else "must not be empty"


def _site(text: str) -> str | None:
    try:
        Site.parse(text)
    except UnknownNameError as error:
        return str(error)
    return None


def _device(text: str) -> str | None:
    if re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", text):
        return None
    return f"device {text!r} is unknown: use auto, cpu, cuda, cuda:NUMBER or mps"


Text = Annotated[str, Rule(check=_filled)]
AnyText = Annotated[str, Rule()]
SiteName = Annotated[str, Rule(check=_site)]
Integer = Annotated[int, Rule()]
Count = Annotated[int, Rule(ge=1)]
Natural = Annotated[int, Rule(ge=0)]
Flag = Annotated[bool, Rule()]
Mask = Literal["content", "all", "first", "last", "words"]
Pool = Literal["mean", "last", "first", "max"]
Progress = Literal["auto", "rich", "plain", "json", "none"]
Layers = Annotated[tuple[Integer, ...], Items()]
Sites = Annotated[tuple[SiteName, ...], Items()]


def _about(help: str, panel: str, metavar: str | None = None, **rest: Any) -> dict[str, About]:
    return {"about": About(help, panel, metavar, **rest)}


_INPUT: Final = "Input"
_ROWS: Final = "Activations"
_PROBES: Final = "Probes"
_EVALUATION: Final = "Evaluation"
_RUNNING: Final = "Running"
_OUTPUT: Final = "Output"

_MODEL = _about("A hub id or a local folder.", _INPUT, "ID|DIR", path="dir")
_DATASET = _about(
    "A JSONL, JSON, CSV, TSV, Parquet or CoNLL-U file, a saved dataset folder or a hub id.",
    _INPUT,
    "FILE|DIR|ID",
    path="file",
)
_NEW_STORE = _about(
    "Folder of the store; a run that was interrupted continues there.", _INPUT, "DIR", path="dir"
)
_STORE = _about("Folder or URL of the store.", _INPUT, "STORE", path="dir")
_STORE_HERE = _about("Folder or URL of the store.", _INPUT, "STORE", positional=True, path="dir")
_LIMIT = _about("Use only the first N examples.", _INPUT, "N", unset="all")
_LAYERS = _about(
    "Layers, as in hidden_states[i]: 0 is the embeddings, -1 the last. Not with --sites.",
    _ROWS,
    "N,...",
    unset="all",
    excludes="sites",
)
_SITES = _about(
    "Sites by name, such as resid_post.2,attn_out.2. Not with --layers.",
    _ROWS,
    "SITE,...",
    excludes="layers",
)
_WORKERS = _about(
    "Worker processes: all cores, or all GPUs where there are any.", _RUNNING, "N", unset="all"
)
_ADDRESS = _about(
    "Ray cluster to use, auto for the one that runs here. Without it, Ray is started for this "
    "run alone.",
    _RUNNING,
    "ADDR",
)
_DRY_RUN = _about("Say what would be done, how much and how long; write nothing.", _RUNNING)
_PROGRESS = _about(
    "How progress is shown on stderr: rich on a terminal, else plain lines.", _OUTPUT
)
_JSON = _about("Print the result as JSON on stdout.", _OUTPUT)


# --- the commands ------------------------------------------------------------------------------


class Run:
    """Base of the runs. `example` is shown in help; `takes_config` tells whether the command
    reads a run file."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}
    example: ClassVar[str] = ""
    takes_config: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class ExtractRun(Run):
    """Run a model over a dataset once and store its activations."""

    example = (
        "actstore extract --model sentence-transformers/all-MiniLM-L6-v2 "
        "--dataset train.csv --store acts --layers 0,3,6"
    )
    takes_config = True

    model: Text = field(metadata=_MODEL)
    dataset: Text = field(metadata=_DATASET)
    store: Text = field(metadata=_NEW_STORE)
    text_column: Text = field(
        default="text", metadata=_about("Column with the text.", _INPUT, "COLUMN")
    )
    words_column: Text = field(
        default="words", metadata=_about("Column with each text's list of words.", _INPUT, "COLUMN")
    )
    split: Text | None = field(
        default=None, metadata=_about("Split of the dataset.", _INPUT, "NAME")
    )
    revision: Text | None = field(
        default=None,
        metadata=_about("Branch, tag or commit of the model on the hub.", _INPUT, "NAME"),
    )
    trust_remote_code: Flag = field(
        default=False,
        metadata=_about("Allow Python code that comes with the model to run.", _INPUT),
    )
    limit: Count | None = field(default=None, metadata=_LIMIT)
    layers: Layers | None = field(default=None, metadata=_LAYERS)
    sites: Sites | None = field(default=None, metadata=_SITES)
    masks: Annotated[tuple[Mask, ...], Items()] = field(
        default=("content",), metadata=_about("Which tokens' rows to keep.", _ROWS)
    )
    pool: Annotated[tuple[Pool, ...], Items(at_least=0)] = field(
        default=(), metadata=_about("Keep also one row per example, reduced in these ways.", _ROWS)
    )
    max_length: Count | None = field(
        default=None,
        metadata=_about(
            "Cut texts after N tokens; model means at the model's limit.", _ROWS, "N", unset="model"
        ),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata=_about("Number format of the model and the store; auto is the model's.", _ROWS),
    )
    device: Annotated[str, Rule(check=_device)] = field(
        default="auto",
        metadata=_about("Where the model runs: cpu, cuda, cuda:N, mps.", _RUNNING, "NAME"),
    )
    workers: Count | None = field(default=None, metadata=_WORKERS)
    address: Text | None = field(default=None, metadata=_ADDRESS)
    pack_tokens: Annotated[int, Rule(ge=16)] = field(
        default=2048, metadata=_about("Tokens per forward pass.", _RUNNING, "N")
    )
    shard_mb: Annotated[float, Rule(gt=0)] = field(
        default=64.0, metadata=_about("Size of one shard file in MB.", _OUTPUT, "MB")
    )
    dry_run: Flag = field(default=False, metadata=_DRY_RUN)
    progress: Progress = field(default="auto", metadata=_PROGRESS)
    json: Flag = field(default=False, metadata=_JSON)


@dataclass(frozen=True, kw_only=True)
class ProbeRun(Run):
    """Fit and evaluate probes on a store, with controls, for every task and site."""

    example = (
        "actstore probe --store acts --task category --task words:upos "
        "--probes logistic,attention --heads 1,2 --out results"
    )
    takes_config = True

    store: Text = field(metadata=_STORE)
    task: Annotated[tuple[Text, ...], Items()] = field(
        metadata=_about(
            "Column with the labels; words:COLUMN for one label per word. Repeatable.",
            _INPUT,
            "COLUMN,...",
        )
    )
    layers: Layers | None = field(default=None, metadata=_LAYERS)
    sites: Sites | None = field(default=None, metadata=_SITES)
    mask: Mask = field(default="content", metadata=_about("Which tokens' rows to use.", _ROWS))
    pool: Annotated[tuple[Literal["none", Pool], ...], Items()] = field(
        default=("mean",),
        metadata=_about(
            "How an example's rows become one; none keeps them all. Attention probes always see "
            "all rows.",
            _ROWS,
        ),
    )
    probes: Annotated[tuple[Literal["logistic", "attention"], ...], Items()] = field(
        default=("logistic",),
        metadata=_about("Kinds of probe.", _PROBES, later=("mean_difference", "mlp", "ridge")),
    )
    heads: Annotated[tuple[Count, ...], Items()] = field(
        default=(1,), metadata=_about("Numbers of heads of attention probes.", _PROBES, "N,...")
    )
    attention_layers: Layers | None = field(
        default=None,
        metadata=_about(
            "Layers of attention probes; same means the layers above.",
            _PROBES,
            "N,...",
            unset="same",
        ),
    )
    alphas: Annotated[tuple[Annotated[float, Rule(ge=0)], ...], Items()] = field(
        default=(0.0, 0.001, 0.01, 0.1),
        metadata=_about("Penalties to choose from by cross-validation.", _PROBES, "X,..."),
    )
    steps: Count = field(default=500, metadata=_about("Steps of attention training.", _PROBES, "N"))
    learning_rate: Annotated[float, Rule(gt=0)] | None = field(
        default=None,
        metadata=_about("Learning rate of attention training.", _PROBES, "X", unset="auto"),
    )
    batch_examples: Count = field(
        default=512, metadata=_about("Examples per step of attention training.", _PROBES, "N")
    )
    folds: Annotated[int, Rule(ge=2)] = field(
        default=5, metadata=_about("Folds of cross-validation.", _EVALUATION, "N")
    )
    test_fraction: Annotated[float, Rule(gt=0, lt=1)] = field(
        default=0.2, metadata=_about("Share of the items held out for the test.", _EVALUATION, "X")
    )
    seeds: Annotated[tuple[Natural, ...], Items()] = field(
        default=(0,),
        metadata=_about("Seeds; each gives another split and fit.", _EVALUATION, "N,..."),
    )
    group_by: Text | None = field(
        default=None,
        metadata=_about(
            "Never divide rows with one value of this column between training and test.",
            _EVALUATION,
            "COLUMN",
        ),
    )
    controls: Annotated[tuple[Literal["control_task", "none"], ...], Items(alone="none")] = field(
        default=("control_task",),
        metadata=_about("Controls to fit beside every probe.", _EVALUATION),
    )
    bootstrap: Count = field(
        default=1000,
        metadata=_about("Resamples behind each confidence interval.", _EVALUATION, "N"),
    )
    workers: Count | None = field(default=None, metadata=_WORKERS)
    address: Text | None = field(default=None, metadata=_ADDRESS)
    dry_run: Flag = field(default=False, metadata=_DRY_RUN)
    out: Text = field(metadata=_about("Folder for the results.", _OUTPUT, "DIR", path="dir"))
    progress: Progress = field(default="auto", metadata=_PROGRESS)
    json: Flag = field(default=False, metadata=_JSON)


@dataclass(frozen=True, kw_only=True)
class InfoRun(Run):
    """Say what a store holds and what made it."""

    example = "actstore info acts"

    store: Text = field(metadata=_STORE_HERE)
    json: Flag = field(default=False, metadata=_JSON)


@dataclass(frozen=True, kw_only=True)
class VerifyRun(Run):
    """Check a store; exit 0 when it is good, 1 when it is damaged."""

    example = "actstore verify acts --deep"

    store: Text = field(metadata=_STORE_HERE)
    deep: Flag = field(
        default=False, metadata=_about("Read every byte and compare checksums.", "Checks")
    )
    against_model: Count | None = field(
        default=None,
        metadata=_about(
            "Compare the rows of N examples with a plain run of the model.", "Checks", "N"
        ),
    )
    repair: Flag = field(
        default=False,
        metadata=_about("Set damaged units aside, so that extract makes them again.", "Checks"),
    )
    json: Flag = field(default=False, metadata=_JSON)


@dataclass(frozen=True, kw_only=True)
class ReportRun(Run):
    """Make one self-contained page of a folder of results."""

    example = "actstore report results"

    results: Text = field(
        metadata=_about("Folder of results.", _INPUT, "DIR", positional=True, path="dir")
    )
    out: Text | None = field(
        default=None,
        metadata=_about(
            "File to write; report.html (or .md) in DIR without it.", _OUTPUT, "FILE", path="file"
        ),
    )
    format: Literal["html", "md"] = field(
        default="html", metadata=_about("Format of the page.", _OUTPUT)
    )


@dataclass(frozen=True, kw_only=True)
class PredictRun(Run):
    """Apply a saved probe to new texts."""

    example = 'actstore predict --probe results/probes/best.safetensors --text "A fine day."'

    probe: Text = field(metadata=_about("File of the probe.", _INPUT, "FILE", path="file"))
    text: Annotated[tuple[AnyText, ...], Items(distinct=False)] = field(
        metadata=_about("Text to classify. Repeatable.", _INPUT, "TEXT", commas=False)
    )
    json: Flag = field(default=False, metadata=_JSON)


@dataclass(frozen=True, kw_only=True)
class DemoRun(Run):
    """Extract, probe and report on a small data set, offline, in a few minutes."""

    example = "actstore demo"

    out: Text = field(
        default="actstore-demo", metadata=_about("Folder to write.", _OUTPUT, "DIR", path="dir")
    )
    workers: Count | None = field(default=None, metadata=_WORKERS)
    limit: Count | None = field(default=None, metadata=_LIMIT)
    progress: Progress = field(default="auto", metadata=_PROGRESS)


COMMANDS: Final[Mapping[str, type[Run]]] = types.MappingProxyType(
    {
        "extract": ExtractRun,
        "info": InfoRun,
        "verify": VerifyRun,
        "probe": ProbeRun,
        "report": ReportRun,
        "predict": PredictRun,
        "demo": DemoRun,
    }
)


def command_of(run_class: type[Run]) -> str:
    """Name of the command that a run class belongs to."""
    return next(name for name, known in COMMANDS.items() if known is run_class)
