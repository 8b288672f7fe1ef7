"""Options and config files: what is accepted, what is refused, and what the error says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.config_options import INF, NAN, PASSES, config, refuse, refuse_file
from tokenpass.config import Config, PassOptions, PassSchema, PassSpec, TokenOptions, resolve
from tokenpass.config_schema import FILE_KEYS, FILE_ONLY, OPTION_NAMES
from tokenpass.errors import ConfigError, InternalError, OptionError, UserError


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "plan.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def only_pass(**options: Any) -> PassSpec:
    passes = config(passes=[{"token_merge": options}]).passes
    assert passes is not None
    return passes[0]


# Defaults and merging.


def test_defaults() -> None:
    assert resolve(None, PASSES) == resolve({}, PASSES) == Config()
    assert Config().budget == 1.0
    assert Config().passes is None
    assert Config().edits is None


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().budget = 0.5


def test_max_error_alone_lifts_the_budget() -> None:
    assert config(max_error=0.05).budget is None
    assert config(max_error=0.05, budget=0.5).budget == 0.5
    assert config(max_error=None).budget == 1.0
    assert config(max_error=0.05, config={"budget": 0.5}).budget == 0.5
    assert config(config={"max_error": 0.05}).budget is None
    assert config(config={"max_error": 0.05}, max_error=None).budget == 1.0


def test_options_beat_the_file(write: Callable[[str], Path]) -> None:
    path = write("version: 1\nbudget: 30%\nseed: 3\n")
    both = config(config=path, budget=0.7)
    assert (both.budget, both.seed, both.origin) == (0.7, 3, str(path))
    assert config(config=str(path)).budget == 0.3
    assert config(budget=0.7).origin == "options"


def test_a_wrong_value_in_the_file_is_told_even_where_an_option_beats_it(
    write: Callable[[str], Path],
) -> None:
    path = write("version: 1\nbudget: 3\n")
    assert "plan.yaml:2: budget:" in refuse_file(path, budget=0.5)


def test_config_none_is_no_config() -> None:
    assert config(config=None) == Config()


# Single options.

GOOD = [
    ("budget", 0.3, 0.3),
    ("budget", 1, 1.0),
    ("budget", "30%", 0.3),
    ("budget", " 12.5 % ", 0.125),
    ("max_error", 2, 2.0),
    ("objective", "flops", "flops"),
    ("objective", "memory", "memory"),
    ("seed", 0, 0),
    ("seed", 2**63 - 1, 2**63 - 1),
    ("training", "allow", "allow"),
    ("shorter_cache", True, True),
    ("verify", "first", "first"),
    ("lowering", "eager", "eager"),
    ("inductor", "max-autotune", "max-autotune"),
    ("inductor", {"epilogue-fusion": True}, {"epilogue_fusion": True}),
    ("on_failure", "raise", "raise"),
    ("device_profile", "cpu_generic", "cpu_generic"),
    ("device_profile", None, None),
    ("passes", [], ()),
]


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_good_values(name: str, value: Any, expected: Any) -> None:
    found = getattr(config(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


BAD = [
    *(("budget", bad) for bad in (0, 30, -1, NAN, INF, "abc", True, None, [0.3], 1.0001, 0.0)),
    *(("budget", bad) for bad in ("0%", "101%", "-5%", "nan%", "", "%", 1j, "٣%%")),
    *(("max_error", bad) for bad in (0, -0.1, NAN, INF, "5%", "0.1", True, [])),
    *(("objective", bad) for bad in ("energy", "latencyy", 1, None)),
    *(("seed", bad) for bad in (-1, 1.0, True, "1", None, 2**63)),
    *(("passes", bad) for bad in (None, "token_merge", {"token_merge": {}}, 3)),
    *(("config", bad) for bad in (3, "", ["a.yaml"], True)),
    *(("device_profile", bad) for bad in ("", 3, ["cpu"])),
    *(("training", bad) for bad in ("alow", True, None)),
    *(("shorter_cache", bad) for bad in ("yes", 1, None)),
    *(("verify", bad) for bad in ("frist", True, None)),
    *(("lowering", bad) for bad in ("mlir", None)),
    *(("inductor", bad) for bad in (3, None, {1: 2}, ["max_autotune"])),
    *(("on_failure", bad) for bad in ("riase", False)),
    *(("calibration", bad) for bad in (1, "", "no_such_file.yaml", {"sites": {}}, True)),
    *((name, 1) for name in FILE_ONLY),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values(name: str, value: Any) -> None:
    assert refuse(**{name: value}).startswith(f"{name}: ")


def test_messages() -> None:
    assert refuse(budget=30) == (
        'budget: expected a share of the dense cost above 0 and at most 1, such as 0.3 or "30%", '
        'got 30: 30 percent is written 0.3 or "30%"'
    )
    assert refuse(budget="0.3").endswith("got '0.3': a number stands without quotes")
    assert refuse(verify="frist").endswith("got 'frist' (did you mean 'first'?)")
    assert refuse(objective="energy") == (
        "objective: expected one of 'latency', 'flops', 'memory', "
        "got 'energy': not available in this version"
    )
    assert refuse(calibration=1) == (
        "calibration: expected the path of a file that `tokenpass.calibrate` wrote, or what it "
        "returned, got 1"
    )
    assert refuse(spans=[]) == (
        "spans: expected {name: [start, stop]}, token positions with the stop not included, got []"
    )
    assert refuse(edits=[]).startswith("edits: belongs in a config file")
    assert refuse(buget=0.3).startswith("buget: unknown option (did you mean 'budget'?); allowed:")


def test_a_long_value_is_cut() -> None:
    assert len(refuse(budget="x" * 10_000)) < 300


def test_keys_that_are_no_strings() -> None:
    with pytest.raises(OptionError, match="5: unknown option"):
        resolve({5: 1}, PASSES)
    with pytest.raises(OptionError, match="expected a mapping, got 'budget'"):
        resolve("budget", PASSES)


def test_all_problems_at_once() -> None:
    text = refuse(
        buget=0.3,
        max_error=-1,
        verify="frist",
        seed=True,
        spans=[],
        passes=["token_merg", {"token_prune": {"policy": "fast", "layers": "a"}}],
        config={"objective": "energy", "edits": [{"pass": "x"}]},
    )
    lines = text.splitlines()
    assert lines[0] == "13 problems in the options:"
    keys = [line.strip().removeprefix("config: ").split(": ")[0] for line in lines[1:]]
    assert sorted(keys) == sorted(
        ["buget", "max_error", "verify", "seed", "spans", "passes[0]"]
        + ["passes[1].token_prune.policy", "passes[1].token_prune.layers", "objective"]
        + ["edits[0].site", "edits[0].policy", "edits[0].level", "edits"]
    )


@given(st.one_of(st.floats(), st.integers(), st.text(), st.booleans(), st.none()))
def test_a_budget_is_a_share_or_an_error(value: Any) -> None:
    try:
        budget = config(budget=value).budget
    except OptionError:
        return
    assert budget is not None
    assert 0 < budget <= 1


@given(
    st.dictionaries(
        st.sampled_from(sorted({*OPTION_NAMES, *FILE_KEYS, "x"})),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
            max_leaves=5,
        ).filter(lambda value: not isinstance(value, str) or len(value) < 6),
    )
)
def test_any_options_give_a_config_or_a_user_error(options: dict[str, Any]) -> None:
    try:
        result = resolve(options, PASSES)
    except UserError:
        return
    assert isinstance(result, Config)


def test_inductor_names_are_checked_where_they_are_known() -> None:
    names: dict[str, Any] = {"inductor_modes": ["default", "max-autotune"]}
    names["inductor_options"] = ["epilogue_fusion", "triton.cudagraphs"]

    def read(inductor: object) -> object:
        return resolve({"inductor": inductor}, PASSES, **names).inductor

    assert read("max-autotune") == "max-autotune"
    assert read({"epilogue-fusion": 1, "triton.cudagraphs": 0})
    with pytest.raises(OptionError, match=r"inductor: unknown Inductor mode .*'max-autotune'"):
        read("max-autotuen")
    with pytest.raises(OptionError, match=r"inductor\.epilogue_fuson: .*'epilogue_fusion'"):
        read({"epilogue_fuson": 1})


def test_inductor_with_eager_lowering_is_refused() -> None:
    assert refuse(lowering="eager", inductor="max-autotune").startswith("inductor: has no effect")
    assert config(lowering="eager", inductor="default").lowering == "eager"
    assert "inductor: has no effect" in refuse(
        config={"inductor": {"epilogue_fusion": True}}, lowering="eager"
    )


def test_calibrations(tmp_path: Path, write: Callable[[str], Path]) -> None:
    (tmp_path / "c.yaml").write_text("")
    path = write("version: 1\ncalibration: c.yaml\n")
    assert config(config=path).calibration == str(tmp_path / "c.yaml")
    assert config(calibration=tmp_path / "c.yaml").calibration == str(tmp_path / "c.yaml")
    assert config(calibration=None).calibration is None
    path = write("version: 1\ncalibration: d.yaml\n")
    told = f"plan.yaml:2: calibration: file not found: {tmp_path / 'd.yaml'}"
    assert refuse_file(path) == told
    held = SimpleNamespace(sites={}, batches=1, tokens=2, complete=True)
    assert config(calibration=held).calibration is held


def test_device_profiles(tmp_path: Path, write: Callable[[str], Path]) -> None:
    (tmp_path / "mine.yaml").touch()
    path = write("version: 1\ndevice_profile: ./mine.yaml\n")
    assert config(config=path).device_profile == str(tmp_path / "mine.yaml")
    assert config(device_profile=tmp_path / "mine.yaml").device_profile
    assert "device_profile: file not found" in refuse(device_profile="no/such.yaml")
    with pytest.raises(OptionError, match=r"device_profile: unknown device profile .*'h100'"):
        resolve({"device_profile": "h10"}, PASSES, device_profiles=["h100", "cpu"])
    assert resolve({"device_profile": "cpu"}, PASSES, device_profiles=["h100", "cpu"])


# Passes.


def test_passes() -> None:
    spec = only_pass(policy="tome", layers="2-11", keep_ratio="auto")
    assert (spec.name, spec.policy, spec.layers) == ("token_merge", "tome", ((2, 11),))
    assert spec.options == TokenOptions(keep_ratio="auto")
    passes = config(passes=["token_merge", {"token_prune": None}]).passes
    assert passes is not None
    assert [spec.name for spec in passes] == ["token_merge", "token_prune"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (2, ((2, 2),)),
        ("2-11", ((2, 11),)),
        (" 3 ", ((3, 3),)),
        ([0, "2-4", 7], ((0, 0), (2, 4), (7, 7))),
        ([5, "0-2", 3, "1-1"], ((0, 3), (5, 5))),
    ],
)
def test_layers(layers: Any, expected: object) -> None:
    assert only_pass(layers=layers).layers == expected


@pytest.mark.parametrize(
    "layers", ["11-2", -1, "-1", True, 1.0, "a", "", [], [[1]], "1-", "1-2-3", None, "all", "1,2"]
)
def test_bad_layers(layers: Any) -> None:
    text = refuse(passes=[{"token_merge": {"layers": layers}}])
    assert text.startswith("passes[0].token_merge.layers: expected layers such as 2,")


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1), st.integers(0, 70))
def test_layer_ranges_include_both_ends(ranges: list[tuple[int, int]], layer: int) -> None:
    spec = only_pass(layers=[f"{first}-{first + more}" for first, more in ranges])
    inside = any(first <= layer <= first + more for first, more in ranges)
    assert spec.covers(layer, "encoder") is inside
    assert not spec.covers(None, "encoder")


def test_patterns() -> None:
    spec = only_pass(include="encoder.*", exclude=["re:.*text.*", "encoder.layer.1"])
    assert spec.covers(None, "encoder.layer.2")
    assert not spec.covers(None, "encoder.text.layer.2")
    assert not spec.covers(None, "encoder.layer.1")
    assert spec.covers(None, "encoder.layer.10")
    assert not spec.covers(None, "vision.encoder.layer.2")
    assert only_pass().covers(None, "anything")
    assert only_pass(include=["re:enc"]).covers(1, "encoder") is False


@pytest.mark.parametrize("patterns", ["", [], [""], ["re:"], ["re:("], 3, [3], None, {"a": 1}])
def test_bad_patterns(patterns: Any) -> None:
    for key in ("include", "exclude"):
        text = refuse(passes=[{"token_merge": {key: patterns}}])
        assert text.startswith(f"passes[0].token_merge.{key}: expected a list of globs")


@pytest.mark.parametrize("ratio", [0, 1, 1.0, -0.5, 1.5, "atuo", True, None, NAN])
def test_bad_keep_ratio(ratio: Any) -> None:
    text = refuse(passes=[{"token_merge": {"keep_ratio": ratio}}])
    assert text.startswith('passes[0].token_merge.keep_ratio: expected "auto" or the share')


def test_good_keep_ratio() -> None:
    assert only_pass(keep_ratio="60%").options == TokenOptions(keep_ratio=0.6)


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        (["token_merg"], "passes[0]: unknown pass 'token_merg' (did you mean 'token_merge'?)"),
        ([{"token_merge": {"policy": "tme"}}], "unknown policy 'tme' (did you mean 'tome'?)"),
        ([{"token_merge": {"polcy": "tome"}}], "unknown option of token_merge (did you mean"),
        ([{"token_merge": {3: 1}}], "passes[0].token_merge.3: unknown option"),
        ([{"token_merge": {"policy": 3}}], "policy: expected a policy's name, got 3"),
        ([{"token_merge": {"policy": None}}], "policy: expected a policy's name, got None"),
        ([{"token_merge": "tome"}], "passes[0].token_merge: expected {option: value}, got 'tome'"),
        ([{"token_merge": None, "policy": "tome"}], "options stand deeper than the pass's name"),
        ([{}], "passes[0]: expected a name or {name: {option: value}}, got {}"),
        ([3], "passes[0]: expected a name"),
        ([{3: {}}], "passes[0]: expected a name"),
        (["dead_tokens"], "is exact and always on; `passes` limits the lossy ones: token_merge"),
        (["token_merge", {"token_merge": {}}], "passes[1]: token_merge stands twice"),
        (["sparse_attention"], "sparse_attention.block: missing; expected a block size"),
        ([{"sparse_attention": {"block": 1, "policy": "x"}}], "unknown option of sparse_attention"),
        ([{"sparse_attention": {"block": 1, "density": 2}}], "expected a share of pairs above 0"),
        ([{"sparse_attention": {"block": True}}], "block: expected a block size, got True"),
    ],
)
def test_bad_passes(passes: Any, expected: str) -> None:
    assert expected in refuse(passes=passes)


def test_one_pass_may_stand_twice_with_different_scopes() -> None:
    passes = [{"token_prune": {"layers": 2}}, {"token_prune": {"layers": "5-7"}}]
    assert len(config(passes=passes).passes or ()) == 2


def test_a_policy_is_checked_beside_a_wrong_scope() -> None:
    text = refuse(passes=[{"token_merge": {"policy": "tme", "layers": "x"}}])
    assert "token_merge.policy: unknown policy" in text
    assert "token_merge.layers: expected" in text


def test_a_schema_may_not_take_a_name_of_the_scope() -> None:
    class Clash(PassOptions):
        layers: int = 0

    with pytest.raises(InternalError, match="Clash: layers"):
        PassSchema(Clash)


# Files.


def test_a_whole_file(write: Callable[[str], Path]) -> None:
    path = write(
        "version: 1\n"
        'budget: "30%"   # share of dense cost\n'
        "max_error: 1e-3\n"
        "objective: latency\n"
        "passes:\n"
        "  - token_merge: {policy: tome, layers: 2-11, keep_ratio: auto}\n"
        '  - token_prune: {policy: fastv, layers: 2, exclude: ["re:.*text.*"]}\n'
    )
    read = config(config=path)
    assert (read.budget, read.max_error) == (0.3, 0.001)
    assert [spec.policy for spec in read.passes or ()] == ["tome", "fastv"]


def test_every_problem_of_a_file_has_its_line(write: Callable[[str], Path]) -> None:
    path = write(
        "budget: 30\n"
        "budgett: 1\n"
        "passes:\n"
        "  - token_merge:\n"
        "      policy: tme\n"
        "      layers: 2\n"
        "      layers: 3\n"
        "  - token_prun\n"
        "verify: on\n"
        "5: 6\n"
    )
    lines = [line.strip().split(": ")[:2] for line in refuse_file(path).splitlines()[1:]]
    assert sorted((int(place.split(":")[1]), key.split(",")[0]) for place, key in lines) == [
        (1, "budget"),
        (1, "version"),
        (2, "budgett"),
        (5, "passes[0].token_merge.policy"),
        (7, "passes[0].token_merge.layers"),
        (8, "passes[1]"),
        (9, "verify"),
        (10, "expected a word as key"),
    ]
    assert "(did you mean 'tome'?)" in refuse_file(path)
    assert "first on line 6" in refuse_file(path)
    assert "YAML reads on, off, yes and no as true and false" in refuse_file(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ":1: expected a mapping (`key: value` lines), got nothing"),
        ("- budget\n", ":1: expected a mapping (`key: value` lines), got a list"),
        ("budget 0.3\n", ":1: expected a mapping (`key: value` lines), got 'budget 0.3'"),
        ("version: 1\nbudget: [0.3\n", ":3: not valid YAML: "),
        ("version: 1\n\tbudget: 0.3\n", ":2: not valid YAML: "),
        ("version: 1\n---\nversion: 1\n", ":2: not valid YAML: but found another document"),
        ("version: 1\nbudget: 0.3\nbudget: 0.4\n", ":3: budget: this key stands twice, first on"),
        ("version: 2\nbudgett: 3\n", ":1: version: expected 1, the version that this tokenpass"),
        ('version: "1"\n', ":1: version: expected 1, the version of the file format, got '1'"),
        ("version: true\n", ":1: version: expected 1, the version of the file format, got True"),
        ("version: 1.0\n", ":1: version: expected 1, the version of the file format, got 1.0"),
        ("budget: 0.3\n", ":1: version: missing; write `version: 1`"),
        ("version: 1\nbudget: .nan\n", ":2: budget: expected a share"),
        ("version: 1\nbudget:\n", ":2: budget: expected a share"),
        ("version: 1\nconfig: a.yaml\n", ":2: config: a config file cannot name another one"),
        ("version: 1\ncalibration: []\n", ":2: calibration: expected the path of"),
        ("version: 1\nseed: &a 3\nbudget: *a\n", ":3: not valid YAML: aliases (*name)"),
        ("version: 1\n<<: {seed: 3}\n", ":2: merge keys (<<) are not allowed"),
        ("version: 1\nseed: !!python/name:os.system x\n", ":2: not valid YAML: could not"),
        ("version: 1\npasses: !!set {a, b}\n", ":2: not valid YAML: the tag"),
        ("version: 1\nseed: 2024-99-99\n", ":2: not valid YAML: month must be in"),
        ("version: 1\n[1, 2]: 3\n", ":2: expected a word as key, got a list"),
        ("version: 1\nseed: \x07\n", ":1: not valid YAML: unacceptable character"),
        ("[" * 5000, ":1: nested too deeply"),
    ],
)
def test_bad_files(write: Callable[[str], Path], text: str, expected: str) -> None:
    assert refuse_file(write(text)).startswith(f"plan.yaml{expected}")


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").touch()
    text = refuse(ConfigError, config=tmp_path / "plna.yaml")
    assert text == f"{tmp_path / 'plna.yaml'}: file not found (did you mean 'plan.yaml'?)"
    assert "no folder" in refuse(ConfigError, config=tmp_path / "none" / "plan.yaml")


def test_unreadable_files(tmp_path: Path) -> None:
    assert "cannot be read" in refuse(ConfigError, config=tmp_path)
    assert "cannot be read" in refuse(ConfigError, config="a\0b")
    (tmp_path / "latin.yaml").write_bytes(b"seed: \xff\n")
    assert "expected UTF-8 text" in refuse(ConfigError, config=tmp_path / "latin.yaml")


def test_a_mapping_as_config() -> None:
    assert config(config={"budget": 0.3}).budget == 0.3
    assert config(config={"budget": 0.3}).origin == "config"
    assert refuse(ConfigError, config={"budget": 3}).startswith("config: budget: expected a share")
    assert "cannot name another" in refuse(ConfigError, config={"config": "a.yaml"})
    assert refuse(ConfigError, config={"version": 2}).startswith("config: version: expected 1")


@given(st.text(max_size=200))
def test_any_text_gives_a_config_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):  # random text never says `version: 1`
        config(config=path)


# Documentation.


def test_readme_lists_every_option(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    table = text.split("## Options")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(f"`{name}`" for name in OPTION_NAMES)


def test_the_files_that_the_readme_shows_are_right(
    repository: Path, write: Callable[[str], Path]
) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```yaml\n")[1:]]
    blocks = [block for block in blocks if "cases:" not in block]  # a check file: test_docs
    assert blocks
    for block in blocks:
        assert config(config=write(block)).passes


def test_every_field_says_what_is_expected() -> None:
    for name, info in Config.model_fields.items():
        literal = str(info.annotation).startswith("typing.Literal")
        assert info.description or literal or name == "origin"
