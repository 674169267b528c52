"""Run files: what words mean, where faults are, and the round trip."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actstore.config import COMMANDS, ExtractRun, ProbeRun, Run
from actstore.errors import InputError
from actstore.option import OptionSpec, option_specs
from actstore.request import Given, build_run, from_text, resolve_scalar
from actstore.runfile import dump_run, load_run, read_run_file

EXTRACT = "model: m\ndataset: d\nstore: s\n"
PROBE = "store: s\ntask: [t]\nout: o\n"


def faults_of(error: InputError) -> list[str]:
    return [str(error), *getattr(error, "__notes__", [])]


@pytest.fixture
def complain(tmp_path, monkeypatch):
    """Load a run file that must be refused; the complaints, with the file called run.yaml."""
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, run_class: type[Run] = ExtractRun) -> list[str]:
        data = text.encode() if isinstance(text, str) else text
        (tmp_path / "run.yaml").write_bytes(data)
        with pytest.raises(InputError) as caught:
            load_run(run_class, "run.yaml")
        assert type(caught.value) is InputError
        assert caught.value.exit_code == 2
        found = faults_of(caught.value)
        assert all("\n" not in fault for fault in found)
        return found

    return load


@pytest.fixture
def load(tmp_path):
    def read(text: str | bytes, run_class: type[Run] = ExtractRun) -> Run:
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_run(run_class, path)

    return read


# --- what words mean ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("nULL", "nULL"),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("0123", 123),
        ("-7", -7),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-11-20", "2026-11-20"),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("3.10", 3.1),
        (".5", 0.5),
        ("5.", 5.0),
        (".", "."),
        ("1e", "1e"),
        ("-.inf", -math.inf),
        (".Inf", math.inf),
        ("inf", "inf"),
        ("nan", "nan"),
        ("٣", "٣"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_resolve_scalar(word, value):
    found = resolve_scalar(word)
    assert found == value
    assert type(found) is type(value)


def test_resolve_scalar_nan_and_huge():
    assert math.isnan(resolve_scalar(".nan"))
    digits = "9" * 5000
    assert resolve_scalar(digits) == digits


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_read_back(number):
    assert resolve_scalar(repr(number)) == number
    assert type(resolve_scalar(repr(number))) is type(number)


def test_words_of_yaml_1_1_stay_words(load):
    run = load("model: no\ndataset: 12:30:45\nstore: on\nsplit: 2026-11-20\nlimit: 0123\n")
    assert (run.model, run.dataset, run.store, run.split) == ("no", "12:30:45", "on", "2026-11-20")
    assert run.limit == 123


def test_numbers_of_yaml_1_2(load):
    run = load(PROBE + "alphas: [1e-3, 0, .5]\nlearning_rate: 1e-3\n", ProbeRun)
    assert run.alphas == (0.001, 0.0, 0.5)
    assert all(type(alpha) is float for alpha in run.alphas)
    assert run.learning_rate == 0.001


def test_forms_of_the_file(load):
    plain = load(EXTRACT + "layers: [0, -1]\nlimit: all\n")
    assert plain == ExtractRun(model="m", dataset="d", store="s", layers=(0, -1))
    assert load(b"\xef\xbb\xbf" + EXTRACT.encode() + b"layers: [0, -1]") == plain
    assert load((EXTRACT + "layers:\n- 0\n- -1\n").replace("\n", "\r\n")) == plain
    assert load("---\n{model: m, dataset: 'd', store: \"s\", layers: [0, -1]}\n...\n") == plain
    assert load(EXTRACT + "layers: [0, -1]\nsites: null\nmax_length: model\n") == plain


def test_empty_file_gives_what_is_missing(complain):
    assert complain("") == complain("# nothing\n") == complain("{}")
    assert complain("") == [
        "run.yaml: key 'model' is missing: add it, or give --model",
        "run.yaml: key 'dataset' is missing: add it, or give --dataset",
        "run.yaml: key 'store' is missing: add it, or give --store",
    ]


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("fold: 1", "run.yaml:4:1: unknown key 'fold'; --help lists the known ones"),
        ("layer: [1]", "run.yaml:4:1: unknown key 'layer'; did you mean 'layers'?"),
        ("text-column: a", "run.yaml:4:1: unknown key 'text-column'; did you mean 'text_column'?"),
        ("<<: {limit: 1}", "run.yaml:4:1: unknown key '<<'; --help lists the known ones"),
        ("1: a", "run.yaml:4:1: a key must be a word"),
        ("null: a", "run.yaml:4:1: a key must be a word"),
        ("[a]: b", "run.yaml:4:1: a key must be a word"),
        ("model: q", "run.yaml:4:1: key 'model' is given twice, first at line 1"),
        ("split: 0123", "run.yaml:4:8: split: expected text, got 0123; put it in quotes"),
        ("split: true", "run.yaml:4:8: split: expected text, got true; put it in quotes"),
        ("revision: 3.10", "run.yaml:4:11: revision: expected text, got 3.10; put it in quotes"),
        ("split: ''", "run.yaml:4:8: split: must not be empty"),
        ("text_column:", "run.yaml:4:13: text_column: expected text, got nothing"),
        ("split: [a]", "run.yaml:4:8: split: expected text, got a list"),
        ("split: {a: 1}", "run.yaml:4:8: split: expected text, got a mapping"),
        (
            "limit: five",
            "run.yaml:4:8: limit: expected a whole number or all, got 'five'",
        ),
        (
            'limit: "5"',
            "run.yaml:4:8: limit: expected a whole number or all, got '5'; remove the quotes",
        ),
        ("limit: 5.0", "run.yaml:4:8: limit: expected a whole number or all, got 5.0"),
        ("limit: true", "run.yaml:4:8: limit: expected a whole number or all, got true"),
        ("limit: 1e3", "run.yaml:4:8: limit: expected a whole number or all, got 1e3"),
        ("limit: 0", "run.yaml:4:8: limit: must be at least 1, got 0"),
        ("shard_mb: 0", "run.yaml:4:11: shard_mb: must be above 0, got 0"),
        ("shard_mb: .inf", "run.yaml:4:11: shard_mb: expected a finite number, got .inf"),
        ("shard_mb: .nan", "run.yaml:4:11: shard_mb: expected a finite number, got .nan"),
        ("shard_mb: true", "run.yaml:4:11: shard_mb: expected a number, got true"),
        ("shard_mb: '6'", "run.yaml:4:11: shard_mb: expected a number, got '6'; remove the quotes"),
        ("pack_tokens: 15", "run.yaml:4:14: pack_tokens: must be at least 16, got 15"),
        ("json: yes", "run.yaml:4:7: json: expected true or false, got 'yes'"),
        ("json: 1", "run.yaml:4:7: json: expected true or false, got 1"),
        (
            "json: 'true'",
            "run.yaml:4:7: json: expected true or false, got 'true'; remove the quotes",
        ),
        ("layers: 0,3", "run.yaml:4:9: layers: expected a list, such as [0,3], got '0,3'"),
        ("layers: 3", "run.yaml:4:9: layers: expected a list, such as [3], got 3"),
        ("masks:", "run.yaml:4:7: masks: expected a list, got nothing"),
        ("masks: {}", "run.yaml:4:8: masks: expected a list, got a mapping"),
        ("layers: []", "run.yaml:4:9: layers: needs at least one value"),
        ("layers: [1, 0, 1]", "run.yaml:4:9: layers: 1 is listed twice"),
        ("layers: [1, x]", "run.yaml:4:13: layers: expected a whole number, got 'x'"),
        ("layers: [1, null]", "run.yaml:4:13: layers: expected a whole number, got nothing"),
        ("layers: [[1]]", "run.yaml:4:10: layers: expected a whole number, got a list"),
        (
            "dtype: float23",
            "run.yaml:4:8: dtype: expected one of auto, float32, bfloat16, float16, "
            "got 'float23'; did you mean 'float32'?",
        ),
        (
            "dtype: 32",
            "run.yaml:4:8: dtype: expected one of auto, float32, bfloat16, float16, got 32",
        ),
        (
            "pool:\n  - mean\n  - none",
            "run.yaml:6:5: pool: expected one of mean, last, first, max, got 'none'",
        ),
        (
            "device: gpu",
            "run.yaml:4:9: device: device 'gpu' is unknown: "
            "use auto, cpu, cuda, cuda:NUMBER or mps",
        ),
        (
            "sites: [embed, resid_post]",
            "run.yaml:4:16: sites: site 'resid_post' is unknown: use one of embed, final_norm or "
            "resid_pre.BLOCK, attn_out.BLOCK, resid_mid.BLOCK, mlp_out.BLOCK, resid_post.BLOCK "
            "with BLOCK from 0",
        ),
        (
            "sites: [embed]\nlayers: [1]",
            "run.yaml:5:9: layers: not together with run.yaml:4:8: sites",
        ),
        (
            f"split: [{'x' * 3}]",
            "run.yaml:4:8: split: expected text, got a list",
        ),
    ],
)
def test_one_fault(complain, line, complaint):
    assert complain(EXTRACT + line + "\n") == [complaint]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("fold: 1", "run.yaml:4:1: unknown key 'fold'; did you mean 'folds'?"),
        (
            "probes: [logistic, mlp]",
            "run.yaml:4:20: probes: 'mlp' is not available yet; use logistic or attention",
        ),
        (
            "probes: [logistics]",
            "run.yaml:4:10: probes: expected one of logistic, attention, got 'logistics'; "
            "did you mean 'logistic'?",
        ),
        ("heads: [0]", "run.yaml:4:9: heads: must be at least 1, got 0"),
        ("alphas: [0, -0.1]", "run.yaml:4:13: alphas: must be at least 0, got -0.1"),
        ("alphas: [0, 0.0]", "run.yaml:4:9: alphas: 0.0 is listed twice"),
        ("folds: 1", "run.yaml:4:8: folds: must be at least 2, got 1"),
        ("test_fraction: 1", "run.yaml:4:16: test_fraction: must be above 0, below 1, got 1"),
        ("learning_rate: 0", "run.yaml:4:16: learning_rate: must be above 0, got 0"),
        (
            "learning_rate: fast",
            "run.yaml:4:16: learning_rate: expected a number or auto, got 'fast'",
        ),
        ("seeds: [-1]", "run.yaml:4:9: seeds: must be at least 0, got -1"),
        (
            "controls: [control_task, none]",
            "run.yaml:4:11: controls: 'none' cannot be combined with other values",
        ),
    ],
)
def test_one_fault_of_a_probe_run(complain, line, complaint):
    assert complain(PROBE + line + "\n", ProbeRun) == [complaint]


def test_all_faults_at_once_in_the_order_of_the_file(complain):
    text = "dataset: [a]\nmodl: m\nlimit: 0\nlimit: 1\nworkers: x\n"
    assert complain(text) == [
        "run.yaml:1:10: dataset: expected text, got a list",
        "run.yaml:2:1: unknown key 'modl'; did you mean 'model'?",
        "run.yaml:3:8: limit: must be at least 1, got 0",
        "run.yaml:4:1: key 'limit' is given twice, first at line 3",
        "run.yaml:5:10: workers: expected a whole number or all, got 'x'",
        "run.yaml: key 'model' is missing: add it, or give --model",
        "run.yaml: key 'store' is missing: add it, or give --store",
    ]


def test_long_values_are_cut(complain):
    (fault,) = complain(EXTRACT + f"limit: {'x' * 500}\n")
    assert fault == f"run.yaml:4:8: limit: expected a whole number or all, got {'x' * 57!r}..."
    (fault,) = complain(EXTRACT + f"split: {'7' * 4000}\n")
    assert fault == f"run.yaml:4:8: split: expected text, got {'7' * 60}; put it in quotes"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "model: &a m\n",
            "run.yaml:1:8: not a valid run file: anchor &a is not allowed here; "
            "write the value out",
        ),
        (
            "model: *a\n",
            "run.yaml:1:8: not a valid run file: alias *a is not allowed here; write the value out",
        ),
        (
            "&a {b: *a}\n",
            "run.yaml:1:1: not a valid run file: anchor &a is not allowed here; "
            "write the value out",
        ),
        (
            "limit: !!int '5'\n",
            "run.yaml:1:8: not a valid run file: tag 'tag:yaml.org,2002:int' "
            "is not allowed here; write the value out",
        ),
        (
            "x: !!python/name:os.system y\n",
            "run.yaml:1:4: not a valid run file: tag "
            "'tag:yaml.org,2002:python/name:os.system' is not allowed here; write the value out",
        ),
        (
            "model: m\n---\nmodel: n\n",
            "run.yaml:2:1: not a valid run file: but found another document",
        ),
        (
            "model:\tm: n\n",
            "run.yaml:1:7: not a valid run file: found character '\\t' that cannot start any token",
        ),
        (
            "model: [a\n",
            "run.yaml:2:1: not a valid run file: expected ',' or ']', but got '<stream end>'",
        ),
        ("- model\n", "run.yaml:1:1: expected a mapping, such as model: NAME"),
        ("model\n", "run.yaml:1:1: expected a mapping, such as model: NAME"),
        ("model: m\nsplit: \x07\n", "run.yaml:2:8: the character 0x07 cannot stand in YAML"),
        ("[" * 5000, "run.yaml: not a valid run file: nested too deeply"),
    ],
)
def test_no_run_file(complain, text, complaint):
    assert complain(text) == [complaint]


def test_bytes_that_are_no_text(complain):
    assert complain(b"model: m\ndataset: \xff\n") == ["run.yaml:2: not UTF-8 text"]
    assert complain(b"#" * ((1 << 20) + 1)) == [
        "--config: 'run.yaml' is larger than 1 MB: this is not a run file"
    ]


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name, reason in [("x.yaml", "no such file or directory"), ("folder", "is a directory")]:
        with pytest.raises(InputError) as caught:
            load_run(ExtractRun, name)
        assert str(caught.value) == f"--config: cannot read run file {name!r}: {reason}"


def test_places(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("# head\nmodel:   m\nlayers:\n  - 0\n  -   [x]\n")
    values, faults = read_run_file(str(path))
    assert faults == []
    assert values["model"].label == f"{path}:2:10: model"
    assert values["model"].key_label == f"{path}:2:1"
    assert values["layers"].value == [0, ["x"]]
    assert [item.order for item in values["layers"].items] == [(0, 4, 5), (0, 5, 7)]


# --- merging -----------------------------------------------------------------------------------


def spec_of(run_class: type[Run], name: str) -> OptionSpec:
    return next(spec for spec in option_specs(run_class) if spec.name == name)


def typed(**texts: str) -> dict[str, Given]:
    return {
        name: from_text(spec_of(ExtractRun, name), [text], f"--{name}", (2, place, 0))
        for place, (name, text) in enumerate(texts.items())
    }


BASE = typed(model="m", dataset="d", store="s")


def test_stronger_sources_win():
    run = build_run(ExtractRun, [BASE, typed(model="n", limit="3"), typed(limit="4")])
    assert (run.model, run.limit, run.dataset) == ("n", 4, "d")


def test_stronger_source_replaces_an_excluded_option():
    below = BASE | typed(layers="1,2")
    assert build_run(ExtractRun, [below, typed(sites="embed")]) == ExtractRun(
        model="m", dataset="d", store="s", sites=("embed",)
    )
    assert build_run(ExtractRun, [below, typed(layers="all")]).layers is None
    assert build_run(ExtractRun, [below, typed(layers="all"), typed(limit="2")]).limit == 2
    assert build_run(ExtractRun, [below, typed(layers="all", sites="embed")]).sites == ("embed",)
    with pytest.raises(InputError, match=r"^--sites: not together with --layers$"):
        build_run(ExtractRun, [BASE, typed(layers="1", sites="embed")])


@pytest.mark.parametrize(
    ("name", "texts", "value"),
    [
        ("layers", ["0, 3 ,-1"], [0, 3, -1]),
        ("layers", ["0,3", "5"], [0, 3, 5]),
        ("layers", ["all"], "all"),
        ("layers", ["0,,1"], [0, "", 1]),
        ("layers", ["0,1,"], [0, 1, ""]),
        ("layers", ["no,1.5"], ["no", 1.5]),
        ("pool", [""], []),
        ("shard_mb", ["1e2"], 100.0),
        ("shard_mb", ["true"], "true"),
        ("shard_mb", ["~"], "~"),
        ("model", ["123"], "123"),
        ("model", ["a", "b"], "b"),
        ("json", ["Yes"], True),
        ("json", ["0"], False),
        ("json", ["maybe"], "maybe"),
    ],
)
def test_from_text(name, texts, value):
    spec = spec_of(ExtractRun, name)
    assert from_text(spec, texts, "label", (2, 0, 0)).value == value


def test_texts_to_predict_keep_their_commas():
    spec = spec_of(COMMANDS["predict"], "text")
    assert from_text(spec, ["Well, yes.", ""], "--text", (2, 0, 0)).value == ["Well, yes.", ""]


@pytest.mark.parametrize("run_class", COMMANDS.values())
def test_no_value_is_converted(run_class):
    """Every option refuses every value of another kind, alone and in a list."""
    fine = {str: "embed", int: 17, float: 0.5, bool: True}
    for spec in option_specs(run_class):
        for kind, value in fine.items():
            if kind is spec.kind or (kind, spec.kind) == (int, float):
                continue
            written = [value] if spec.many else value
            entry = Given(written, "here", str(value), (0, 1, 1))
            with pytest.raises(InputError) as caught:
                build_run(run_class, [{spec.name: entry}])
            about_it = [fault for fault in faults_of(caught.value) if fault.startswith("here: ")]
            assert len(about_it) == 1, (spec.name, kind)


# --- round trip --------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
SPECIAL = {
    "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3", "mps"]),
    "sites": st.sampled_from(["embed", "final_norm", "resid_post.0", "attn_out.12"]),
    "controls": st.just("control_task"),
    "test_fraction": st.floats(0, 1, exclude_min=True, exclude_max=True),
    "alphas": st.floats(0, allow_infinity=False),
    "layers": st.integers(),
    "attention_layers": st.integers(),
    "text": st.text(st.characters(codec="utf-8")),
}
NUMBERS = {int: st.integers(16), float: st.floats(0, exclude_min=True, allow_infinity=False)}


def values_of(spec: OptionSpec) -> st.SearchStrategy:
    if spec.name in SPECIAL:
        one = SPECIAL[spec.name]
    elif spec.choices:
        one = st.sampled_from(spec.choices)
    else:
        one = {str: TEXTS, bool: st.booleans(), **NUMBERS}[spec.kind]
    if spec.many:
        one = st.lists(one, min_size=1, max_size=4, unique=spec.name != "text").map(tuple)
    return st.none() | one if spec.optional else one


def runs(*commands: str) -> st.SearchStrategy[Run]:
    def build(run_class: type[Run]) -> st.SearchStrategy[Run]:
        return st.builds(
            run_class, **{spec.name: values_of(spec) for spec in option_specs(run_class)}
        ).filter(lambda run: not (getattr(run, "layers", None) and getattr(run, "sites", None)))

    return st.sampled_from([COMMANDS[name] for name in commands]).flatmap(build)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(run=runs(*COMMANDS))
def test_round_trip(tmp_path_factory, run):
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(dump_run(run), encoding="utf-8", newline="")
    assert load_run(type(run), path) == run


def test_dump_is_commented_and_readable():
    text = dump_run(ExtractRun(model="org/name", dataset="my data.csv", store="../acts"))
    assert text.startswith("# actstore extract --config FILE\n\n# --- Input ---")
    assert "\n# A hub id or a local folder. [required]\nmodel: org/name\n" in text
    assert '\ndataset: "my data.csv"\n' in text
    assert "\nstore: ../acts\n" in text
    assert "\nlimit: all\n" in text
    assert "\nsites: null\n" in text
    assert "\nmasks: [content]\n" in text
    assert max(map(len, text.splitlines())) <= 92
