"""The run dataclasses: complete, strict, and true to the interface."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import actstore
from actstore.config import COMMANDS, ExtractRun, ProbeRun, command_of
from actstore.option import Items, OptionSpec, Rule, did_you_mean, option_specs, panels
from actstore.pooling import POOLS
from actstore.tokens import MASK_NAMES

ALL_SPECS = [
    pytest.param(run_class, spec, id=f"{name}-{spec.name}")
    for name, run_class in COMMANDS.items()
    for spec in option_specs(run_class)
]


def spec_of(run_class: type, name: str) -> OptionSpec:
    return next(spec for spec in option_specs(run_class) if spec.name == name)


@pytest.mark.parametrize(
    ("command", "required", "defaults"),
    [
        (
            "extract",
            {"model", "dataset", "store"},
            {
                "text_column": "text",
                "words_column": "words",
                "split": None,
                "revision": None,
                "trust_remote_code": False,
                "limit": None,
                "layers": None,
                "sites": None,
                "masks": ("content",),
                "pool": (),
                "max_length": None,
                "dtype": "auto",
                "device": "auto",
                "workers": None,
                "address": None,
                "pack_tokens": 2048,
                "shard_mb": 64.0,
                "dry_run": False,
                "progress": "auto",
                "json": False,
            },
        ),
        (
            "probe",
            {"store", "task", "out"},
            {
                "layers": None,
                "sites": None,
                "mask": "content",
                "pool": ("mean",),
                "probes": ("logistic",),
                "heads": (1,),
                "attention_layers": None,
                "alphas": (0.0, 0.001, 0.01, 0.1),
                "steps": 500,
                "learning_rate": None,
                "batch_examples": 512,
                "folds": 5,
                "test_fraction": 0.2,
                "seeds": (0,),
                "group_by": None,
                "controls": ("control_task",),
                "bootstrap": 1000,
                "workers": None,
                "address": None,
                "dry_run": False,
                "progress": "auto",
                "json": False,
            },
        ),
        ("info", {"store"}, {"json": False}),
        (
            "verify",
            {"store"},
            {"deep": False, "against_model": None, "repair": False, "json": False},
        ),
        ("report", {"results"}, {"out": None, "format": "html"}),
        ("predict", {"probe", "text"}, {"json": False}),
        (
            "demo",
            set(),
            {"out": "actstore-demo", "workers": None, "limit": None, "progress": "auto"},
        ),
    ],
)
def test_required_options_and_defaults(command, required, defaults):
    specs = option_specs(COMMANDS[command])
    assert {spec.name for spec in specs if spec.required} == required
    assert {spec.name: spec.default for spec in specs if not spec.required} == defaults


def test_every_command_is_covered_and_finds_its_name():
    assert list(COMMANDS) == ["extract", "info", "verify", "probe", "report", "predict", "demo"]
    assert [command_of(run_class) for run_class in COMMANDS.values()] == list(COMMANDS)
    assert {name for name, known in COMMANDS.items() if known.takes_config} == {"extract", "probe"}


@pytest.mark.parametrize(("run_class", "spec"), ALL_SPECS)
def test_help_and_surface(run_class, spec):
    about = spec.about
    assert re.fullmatch(r"[A-Z].*\.", about.help), "help is sentences"
    assert spec.kind in (str, int, float, bool)
    assert spec.name not in {"config", "print_config", "debug", "help"}, "taken by every command"
    if about.unset:
        assert spec.optional
        assert spec.default is None
        assert about.unset not in spec.choices
    assert not set(about.later) & set(spec.choices)
    if spec.kind is bool:
        assert spec.default is False, "a flag switches on"
    if about.excludes:
        rival = spec_of(run_class, about.excludes)
        assert rival.about.excludes == spec.name
        assert spec.default is rival.default is None


@pytest.mark.parametrize("run_class", COMMANDS.values())
def test_runs_are_frozen_and_by_keyword(run_class):
    assert re.fullmatch(r"[A-Z].*\.", run_class.__doc__)
    assert run_class.example.startswith(f"actstore {command_of(run_class)}")
    run = run_class(**{s.name: "x" for s in option_specs(run_class) if s.required})
    assert isinstance(hash(run), int), "defaults are immutable"
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.json = True
    with pytest.raises(TypeError):
        run_class("x")


def test_choices_are_those_of_the_core():
    assert set(spec_of(ExtractRun, "masks").choices) == set(MASK_NAMES)
    assert set(spec_of(ProbeRun, "mask").choices) == set(MASK_NAMES)
    assert spec_of(ExtractRun, "pool").choices == POOLS
    assert spec_of(ProbeRun, "pool").choices == ("none", *POOLS)


def test_spec_reads_shape_from_the_annotation():
    layers = spec_of(ExtractRun, "layers")
    assert (layers.kind, layers.many, layers.optional, layers.required) == (int, True, True, False)
    alphas = spec_of(ProbeRun, "alphas")
    assert (alphas.kind, alphas.many, alphas.optional) == (float, True, False)
    assert alphas.limits == "at least 0"
    rate = spec_of(ProbeRun, "learning_rate")
    assert (rate.kind, rate.many, rate.optional, rate.limits) == (float, False, True, "above 0")


@pytest.mark.parametrize(
    ("run_class", "name", "text"),
    [
        (ExtractRun, "text_column", "Column with the text. [default: text]"),
        (ExtractRun, "limit", "Use only the first N examples. [at least 1; default: all]"),
        (ExtractRun, "dry_run", "Say what would be done, how much and how long; write nothing."),
        (ExtractRun, "split", "Split of the dataset."),
        (ProbeRun, "out", "Folder for the results. [required]"),
        (
            ProbeRun,
            "alphas",
            "Penalties to choose from by cross-validation. [at least 0; default: 0,0.001,0.01,0.1]",
        ),
        (
            ProbeRun,
            "test_fraction",
            "Share of the items held out for the test. [above 0, below 1; default: 0.2]",
        ),
        (ProbeRun, "probes", "Kinds of probe. [logistic, attention; default: logistic]"),
    ],
)
def test_description(run_class, name, text):
    assert spec_of(run_class, name).describe() == text


@pytest.mark.parametrize("run_class", COMMANDS.values())
def test_panels_hold_every_option_once(run_class):
    grouped = [spec.name for specs in panels(run_class).values() for spec in specs]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(run_class))


@pytest.mark.parametrize(
    ("items", "values", "complaint"),
    [
        (Items(), (), "needs at least one value"),
        (Items(at_least=0), (), None),
        (Items(), (1, 2, 1), "1 is listed twice"),
        (Items(), (0.0, 0), "0 is listed twice"),
        (Items(distinct=False), ("a", "a"), None),
        (Items(alone="none"), ("none",), None),
        (Items(alone="none"), ("x", "none"), "'none' cannot be combined with other values"),
        (Items(), (1, 2), None),
    ],
)
def test_items(items, values, complaint):
    assert items.complaint(values) == complaint


def test_rule_describes_its_limits():
    assert Rule().describe() == ""
    assert Rule(ge=16).describe() == "at least 16"
    assert Rule(gt=0, lt=1).describe() == "above 0, below 1"


def test_did_you_mean():
    assert did_you_mean("fold", ["folds", "seeds"]) == "; did you mean 'folds'?"
    assert did_you_mean("zzz", ["folds", "seeds"]) == ""


def test_importing_config_loads_the_standard_library_only():
    code = (
        "import sys; sys.path.insert(0, '.'); import actstore.config; "
        "print(*{m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=Path(actstore.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) - {"__main__"} == {"actstore"}
