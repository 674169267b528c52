"""The command line as a user meets it: help, order of sources, messages, exit codes."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import actstore
from actstore.cli.job import main_of_job
from actstore.cli.main import main
from actstore.config import COMMANDS, DemoRun, ExtractRun, InfoRun, PredictRun, ProbeRun, VerifyRun
from actstore.errors import ActstoreError, IncompleteRunError, InputError, InterruptedRunError
from actstore.option import option_specs

ROOT = Path(actstore.__file__).parents[1]
HEAVY = {"torch", "ray", "transformers", "zarr", "pyarrow", "numpy", "pydantic", "yaml", "rich"}
EXTRACT = ["extract", "--model", "m", "--dataset", "d", "--store", "s"]
PROBE = ["probe", "--store", "s", "--task", "t", "--out", "o"]


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in os.environ:
        if name.startswith(("ACTSTORE_", "RAY_", "_ACTSTORE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def app(monkeypatch):
    """Replace the commands' app modules; the list collects the runs, `app.does` reacts."""
    seen: list[object] = []
    box = types.SimpleNamespace(runs=seen, does=lambda run: 0)

    def run(run: object) -> int:
        seen.append(run)
        return box.does(run)

    for command in COMMANDS:
        module = types.ModuleType(f"actstore.app.{command}")
        module.run = run
        monkeypatch.setitem(sys.modules, f"actstore.app.{command}", module)
    return box


@pytest.fixture
def refuse(app, capsys) -> Callable[..., list[str]]:
    """Run a command that must be refused before any work; its lines on stderr."""

    def call(*args: str) -> list[str]:
        assert main(list(args)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert app.runs == []
        return err.splitlines()

    return call


# --- help --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_option_with_its_text(command, capsys):
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    words = " ".join(out.split())
    for spec in option_specs(COMMANDS[command]):
        assert re.search(rf"^  {re.escape(spec.flag)}( |$)", out, re.MULTILINE), spec.flag
        assert " ".join(spec.describe().split()) in words
    assert COMMANDS[command].example in words
    assert ("--config FILE" in out) == COMMANDS[command].takes_config
    assert ("--print-config" in out) == COMMANDS[command].takes_config
    assert max(map(len, out.splitlines())) <= 100
    assert not re.search(r"[a-z]-$", out, re.MULTILINE), "nothing is broken at a hyphen"


def test_help_of_the_group_shows_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, run_class in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(run_class.__doc__)}$", out, re.MULTILINE)


def test_help_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    assert main(["probe", "--help"]) == 0
    assert "--test-fraction" in capsys.readouterr().out


def test_no_arguments_print_help_on_stderr(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: actstore [OPTIONS] COMMAND")


def test_version(capsys, monkeypatch):
    monkeypatch.setattr(actstore, "__version__", "9.8.7")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "actstore 9.8.7\n"


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["extrct"], *([name, "--help"] for name in COMMANDS)],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(args):
    """In a fresh process; `python -X importtime` writes one line per imported module."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "actstore", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (2 if args == ["extrct"] else 0)
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert {"actstore", "click"} <= imported
    assert imported & HEAVY == set()


# --- what a command is asked to do -------------------------------------------------------------


def test_runs_reach_the_app(app):
    assert main([*EXTRACT, "--layers", "0,3,-1", "--masks", "content,last", "--pool", ""]) == 0
    assert main([*PROBE, "--task", "words:upos,t2", "--alphas", "0,1e-3", "--json"]) == 0
    assert main(["info", "acts", "--json"]) == 0
    assert main(["verify", "--against-model", "5", "acts", "--deep"]) == 0
    assert main(["predict", "--probe", "p", "--text", "Well, yes", "--text", "-x"]) == 0
    assert main(["demo", "--workers", "all"]) == 0
    assert app.runs == [
        ExtractRun(model="m", dataset="d", store="s", layers=(0, 3, -1), masks=("content", "last")),
        ProbeRun(
            store="s", task=("t", "words:upos", "t2"), out="o", alphas=(0.0, 0.001), json=True
        ),
        InfoRun(store="acts", json=True),
        VerifyRun(store="acts", deep=True, against_model=5),
        PredictRun(probe="p", text=("Well, yes", "-x")),
        DemoRun(),
    ]


def test_exit_code_is_the_app_s(app):
    app.does = lambda run: 1
    assert main(["info", "acts"]) == 1


def test_default_run_file_environment_option(app, monkeypatch):
    Path("run.yaml").write_text("model: file\ndataset: file\nstore: file\nlimit: 1\njson: true\n")
    call = ["extract", "--config", "run.yaml"]

    def limit_after(*args: str) -> int | None:
        assert main([*call, *args]) == 0
        return app.runs[-1].limit

    assert limit_after() == 1
    monkeypatch.setenv("ACTSTORE_EXTRACT_LIMIT", "")
    assert limit_after() == 1, "an empty variable is none"
    monkeypatch.setenv("ACTSTORE_EXTRACT_LIMIT", "2")
    assert limit_after() == 2
    assert limit_after("--limit", "3") == 3
    assert limit_after("--limit", "all") is None
    assert app.runs[-1].pack_tokens == 2048
    assert app.runs[-1].json is True
    monkeypatch.setenv("ACTSTORE_EXTRACT_JSON", "no")
    limit_after()
    assert app.runs[-1].json is False
    limit_after("--json")
    assert app.runs[-1].json is True
    limit_after("--json", "--no-json")
    assert app.runs[-1].json is False


def test_lists_replace_lists(app, monkeypatch):
    Path("run.yaml").write_text("store: s\nout: o\ntask: [a, b]\nlayers: [1]\n")
    monkeypatch.setenv("ACTSTORE_PROBE_CONFIG", "run.yaml")
    monkeypatch.setenv("ACTSTORE_PROBE_TASK", "c,d e")
    assert main(["probe"]) == 0
    assert app.runs[-1].task == ("c", "d e")
    assert main(["probe", "--task", "f", "--sites", "embed"]) == 0
    assert app.runs[-1].task == ("f",)
    assert (app.runs[-1].layers, app.runs[-1].sites) == (None, ("embed",))


def test_positional_from_the_environment(app, monkeypatch):
    monkeypatch.setenv("ACTSTORE_INFO_STORE", "acts")
    assert main(["info"]) == 0
    assert app.runs == [InfoRun(store="acts")]


# --- messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["extrct"], "no such command: extrct; did you mean 'extract'? (see 'actstore --help')"),
        (
            ["zzz"],
            "no such command: zzz; use one of extract, info, verify, probe, report, predict, demo "
            "(see 'actstore --help')",
        ),
        (
            ["--verson"],
            "no such option: --verson; did you mean '--version'? (see 'actstore --help')",
        ),
        (
            [*PROBE, "--fold", "3"],
            "no such option: --fold; did you mean '--folds'? (see 'actstore probe --help')",
        ),
        (
            [*EXTRACT, "--no-dry-rum"],
            "no such option: --no-dry-rum; did you mean '--no-dry-run'? "
            "(see 'actstore extract --help')",
        ),
        (["info", "a", "b"], "Got unexpected extra argument (b) (see 'actstore info --help')"),
        (["info"], "STORE is required. Folder or URL of the store."),
        (["predict", "--text", "x"], "--probe is required. File of the probe."),
        (
            [*EXTRACT, "--limit", "five"],
            "--limit: expected a whole number or all, got 'five'",
        ),
        ([*EXTRACT, "--limit", ""], "--limit: expected a whole number or all, got ''"),
        ([*EXTRACT, "--limit", "0"], "--limit: must be at least 1, got 0"),
        ([*EXTRACT, "--shard-mb", "-1"], "--shard-mb: must be above 0, got -1"),
        ([*EXTRACT, "--shard-mb", ".inf"], "--shard-mb: expected a finite number, got .inf"),
        ([*EXTRACT, "--layers", "0,x"], "--layers: expected a whole number, got 'x'"),
        ([*EXTRACT, "--layers", "0,,1"], "--layers: expected a whole number, got ''"),
        ([*EXTRACT, "--layers", ""], "--layers: needs at least one value"),
        ([*EXTRACT, "--layers", "1,1"], "--layers: 1 is listed twice"),
        (
            [*EXTRACT, "--layers", "1", "--sites", "embed"],
            "--sites: not together with --layers",
        ),
        ([*EXTRACT, "--model", ""], "--model: must not be empty"),
        (
            [*EXTRACT, "--masks", "content,lst"],
            "--masks: expected one of content, all, first, last, words, got 'lst'; "
            "did you mean 'last'?",
        ),
        (
            [*EXTRACT, "--device", "tpu"],
            "--device: device 'tpu' is unknown: use auto, cpu, cuda, cuda:NUMBER or mps",
        ),
        (
            [*PROBE, "--probes", "logistic,ridge"],
            "--probes: 'ridge' is not available yet; use logistic or attention",
        ),
        (
            [*PROBE, "--probes", "mean_difference"],
            "--probes: 'mean_difference' is not available yet; use logistic or attention",
        ),
        (
            [*PROBE, "--test-fraction", "1"],
            "--test-fraction: must be above 0, below 1, got 1",
        ),
        (["verify", "s", "--against-model", "0"], "--against-model: must be at least 1, got 0"),
        (
            ["report", "d", "--format", "pdf"],
            "--format: expected one of html, md, got 'pdf'",
        ),
        (
            [*EXTRACT, "--config", "x.yaml"],
            "--config: cannot read run file 'x.yaml': no such file or directory",
        ),
    ],
)
def test_one_line_and_exit_2(refuse, args, message):
    assert refuse(*args) == [f"error: {message}"]


def test_option_without_its_value(refuse):
    (line,) = refuse("predict", "--probe")
    assert line.startswith("error: ")
    assert "'--probe' requires an argument" in line


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LIMIT", "x", "ACTSTORE_EXTRACT_LIMIT: expected a whole number or all, got 'x'"),
        ("JSON", "maybe", "ACTSTORE_EXTRACT_JSON: expected true or false, got 'maybe'"),
        (
            "LIMITS",
            "3",
            "ACTSTORE_EXTRACT_LIMITS: extract has no such option; "
            "did you mean 'ACTSTORE_EXTRACT_LIMIT'?",
        ),
    ],
)
def test_environment_faults(refuse, monkeypatch, variable, value, message):
    monkeypatch.setenv(f"ACTSTORE_EXTRACT_{variable}", value)
    assert refuse(*EXTRACT) == [f"error: {message}"]


def test_all_faults_of_all_sources_at_once(refuse, monkeypatch):
    Path("run.yaml").write_text("stor: s\nlimit: 0\nlimit: 2\nworkers: 0\n")
    monkeypatch.setenv("ACTSTORE_EXTRACT_MAX_LENGTH", "0")
    args = ["extract", "--config", "run.yaml", "--model", "", "--workers", "1"]
    assert refuse(*args) == [
        "error: run.yaml:1:1: unknown key 'stor'; did you mean 'store'?",
        "error: run.yaml:2:8: limit: must be at least 1, got 0",
        "error: run.yaml:3:1: key 'limit' is given twice, first at line 2",
        "error: ACTSTORE_EXTRACT_MAX_LENGTH: must be at least 1, got 0",
        "error: --model: must not be empty",
        "error: run.yaml: key 'dataset' is missing: add it, or give --dataset",
        "error: run.yaml: key 'store' is missing: add it, or give --store",
    ]


def test_all_missing_options_at_once(refuse):
    assert [line.split(".")[0] for line in refuse("probe")] == [
        "error: --store is required",
        "error: --task is required",
        "error: --out is required",
    ]


# --- run files ---------------------------------------------------------------------------------


def test_print_config_does_not_run(app, capsys):
    assert main([*EXTRACT, "--layers", "2", "--print-config"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert app.runs == []
    assert "\nmodel: m\n" in out
    assert "\nlayers: [2]\n" in out
    assert "\nshard_mb: 64.0\n" in out


def test_print_config_validates(refuse):
    assert refuse(*EXTRACT, "--limit", "0", "--print-config") == [
        "error: --limit: must be at least 1, got 0"
    ]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    model=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip),
    layers=st.none() | st.lists(st.integers(-9, 99), min_size=1, unique=True),
    shard=st.floats(0.001, 1e9),
    dtype=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    flag=st.booleans(),
)
def test_print_config_round_trip(app, capsys, model, layers, shard, dtype, flag):
    args = ["extract", f"--model={model}", "--dataset=d", "--store=s", f"--shard-mb={shard!r}"]
    args += ["--dtype", dtype, "--dry-run" if flag else "--no-dry-run"]
    args += [f"--layers={','.join(map(str, layers))}"] if layers else []
    capsys.readouterr()
    assert main([*args, "--print-config"]) == 0
    Path("run.yaml").write_text(capsys.readouterr().out, encoding="utf-8", newline="")
    assert main(args) == 0
    assert main(["extract", "--config", "run.yaml"]) == 0
    assert app.runs[-1] == app.runs[-2]
    assert app.runs[-1].model == model
    assert app.runs[-1].shard_mb == shard


# --- errors while a command runs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (InputError("the store\n  is odd"), "error: the store is odd", 2),
        (IncompleteRunError("2 units are quarantined"), "error: 2 units are quarantined", 1),
        (ActstoreError("bad"), "error: bad", 1),
        (InterruptedRunError("interrupted after 3 of 9"), "error: interrupted after 3 of 9", 130),
        (KeyboardInterrupt(), "error: interrupted", 130),
        (
            OSError(errno.ENOSPC, "No space left on device", "acts/x.tmp"),
            "error: no space left on device (acts/x.tmp): "
            "free some space and run the same command again",
            2,
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "error: no space left on device: free some space and run the same command again",
            2,
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "f"),
            "error: permission denied (f)",
            2,
        ),
        (
            MemoryError(),
            "error: out of memory: use fewer workers, layers or probes at a time",
            2,
        ),
        (
            KeyError("x"),
            "internal error: KeyError: 'x' (run with --debug for the traceback)",
            1,
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "f"),
            "internal error: FileNotFoundError: [Errno 2] No such file: 'f' "
            "(run with --debug for the traceback)",
            1,
        ),
        (
            RuntimeError("a" * 200 + "\n" + "b" * 200),
            f"internal error: RuntimeError: {'a' * 136} ... {'b' * 150} "
            "(run with --debug for the traceback)",
            1,
        ),
        (
            BrokenPipeError(errno.EPIPE, "Broken pipe"),
            "internal error: BrokenPipeError: [Errno 32] Broken pipe "
            "(run with --debug for the traceback)",
            1,
        ),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_errors_of_the_app(app, capsys, error, line, code, debug):
    def fail(run):
        print("partial")
        raise error

    app.does = fail
    assert main(["info", "acts", *["--debug"] * debug]) == code
    out, err = capsys.readouterr()
    assert out == "partial\n"
    assert err.splitlines()[-1] == line
    assert ("Traceback (most recent call last)" in err) == debug
    if not debug:
        assert err == line + "\n"


def test_debug_before_the_command_and_in_the_environment(app, capsys, monkeypatch):
    def fail(run):
        raise RuntimeError("x")

    app.does = fail
    assert main(["--debug", "info", "acts"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("ACTSTORE_DEBUG", "1")
    assert main(["info", "acts"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_exit_of_the_app_is_left_alone(app):
    def leave(run):
        raise SystemExit(7)

    app.does = leave
    with pytest.raises(SystemExit, match="7"):
        main(["info", "acts"])


def python(code: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options
    )


STUB = (
    "import sys, types\n"
    "from actstore.cli.main import main\n"
    "module = sys.modules['actstore.app.info'] = types.ModuleType('actstore.app.info')\n"
)


@pytest.mark.parametrize("lines", [1, 200_000])
def test_reader_that_goes_away(lines):
    """At the flush at the end, and in the middle of printing."""
    read, write = os.pipe()
    os.close(read)
    code = STUB + (
        f"module.run = lambda run: [print('line') for _ in range({lines})] and 0\n"
        "sys.exit(main(['info', 'acts']))\n"
    )
    with python(code, stdout=write) as process:
        os.close(write)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


# --- completion --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("actstore ver", {"plain,verify"}),
        ("actstore probe --test-f", {"plain,--test-fraction"}),
        ("actstore extract --dtype b", {"plain,bfloat16"}),
        ("actstore extract --masks content,l", {"plain,content,last"}),
        ("actstore extract --masks all,al", set()),
        ("actstore extract --store ac", {"dir,ac"}),
        ("actstore extract --config ru", {"file,ru"}),
        ("actstore info ac", {"dir,ac"}),
        ("actstore nothing --x", set()),
    ],
)
def test_completion(words, offered, monkeypatch, capsys):
    monkeypatch.setenv("_ACTSTORE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 0
    assert set(capsys.readouterr().out.split()) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_script(shell, monkeypatch, capsys):
    monkeypatch.setenv("_ACTSTORE_COMPLETE", f"{shell}_source")
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 0
    assert "_ACTSTORE_COMPLETE" in capsys.readouterr().out


# --- jobs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "args", "address"),
    [
        ({}, [], None),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, [], "10.0.0.1:6379"),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, [], "auto"),
        ({"RAY_ADDRESS": "h:1"}, ["--config", "run.yaml"], "h:1"),
        ({}, ["--config", "run.yaml"], "ray://outside"),
        ({"RAY_ADDRESS": "h:1"}, ["--address", "mine"], "mine"),
        ({"RAY_ADDRESS": "h:1", "ACTSTORE_EXTRACT_ADDRESS": "env"}, [], "env"),
    ],
)
def test_address_of_a_job(app, monkeypatch, environment, args, address):
    Path("run.yaml").write_text("address: ray://outside\n")
    monkeypatch.delenv("ACTSTORE_EXTRACT_ADDRESS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        assert main_of_job("extract", [*EXTRACT[1:], *args]) == 0
    finally:
        os.environ.pop("ACTSTORE_EXTRACT_ADDRESS", None)
    assert app.runs[0].address == address


@pytest.mark.parametrize("command", ["extract", "probe"])
def test_job_scripts_are_the_commands(command):
    script = ROOT / "jobs" / f"{command}.py"
    assert len(script.read_text().splitlines()) <= 60
    done = subprocess.run(
        [sys.executable, str(script), "--limit-typo"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert f"(see 'actstore {command} --help')" in done.stderr


def test_importing_a_job_script_runs_nothing():
    spec = importlib.util.spec_from_file_location("job_extract", ROOT / "jobs" / "extract.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main_of_job is main_of_job
