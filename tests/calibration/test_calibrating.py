"""calibrate: what it keeps, against hooks; interruptions; and every refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
from torch.nn import functional as F

import tokenpass
from tokenpass.calibration import calibrating, progress
from tokenpass.errors import CalibrationWarning, ConfigError, OptionError, UserError
from tokenpass.options import read_options
from tokenpass.statistics import (
    Calibration,
    Histogram,
    find_calibration,
    weight_fingerprint,
)
from tokenpass.statistics.stored import texts

WIDTH, HIDDEN = 12, 20


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Fused(nn.Module):
    """Phi-3's spelling: one projection for both, cut in two."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(WIDTH, 2 * HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return x + self.down(up * F.silu(gate))


class Stack(nn.Module):
    def __init__(self, breaks: bool = False, vocabulary: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.layers = nn.ModuleList([Plain(), Gated(), Fused()])
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.breaks = breaks

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
            if self.breaks:
                torch._dynamo.graph_break()
        return self.head(x)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def stack(seed: int = 0, **options: Any) -> Stack:
    torch.manual_seed(seed)
    return Stack(**options).eval()


def batches(count: int = 3, tokens: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 16, (2, tokens), generator=generator) for _ in range(count)]


def calibrate(model: Any, given: Any, **options: Any) -> Calibration:
    options.setdefault("progress", False)
    options.setdefault("sensitivity", False)
    return tokenpass.calibrate(model, given, **options)


def inputs_of(model: nn.Module, given: list[Any]) -> dict[str, Tensor]:
    """What every linear layer read, by hooks: `[rows, entries]`."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, -2))
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        for batch in given:
            model(batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("breaks", [False, True])
def test_what_is_kept_is_what_the_layers_read(breaks: bool) -> None:
    model = stack(breaks=breaks)
    read = inputs_of(model, batches())
    found = calibrate(model, batches(), sensitivity=True)
    assert (found.batches, found.tokens, found.complete) == (3, 42, True)
    if breaks:
        del read["head"]  # Dynamo leaves the frame of the loop alone, and the head is in it
    else:
        assert set(found.sites) == {f"{name}:projection" for name in read}
    assert len(found.sites) == len(read)
    for name, values in read.items():
        site = found.find(
            f"{name}:projection", weight_fingerprint(model.get_submodule(name).weight)
        )
        assert site is not None and site.magnitude == Histogram.of(values), name
        assert site.sensitivity is not None and site.sensitivity > 0


def test_layers_that_dynamo_names_alike_are_kept_apart(tmp_path: Path) -> None:
    path, whole = tmp_path / "c.yaml", tmp_path / "whole.yaml"
    calibrate(stack(breaks=True), batches(3), path=whole, sensitivity=True)
    assert sum("@" in name for name in Calibration.load(whole).sites) == 3
    calibrate(stack(breaks=True), batches(2), path=path, sensitivity=True)
    calibrate(stack(breaks=True), batches(3), path=path, sensitivity=True)
    assert path.read_bytes() == whole.read_bytes()


def test_gates_and_what_they_multiply() -> None:
    model = stack()
    read = inputs_of(model, batches())
    sites = calibrate(model, batches()).sites
    layer: Any = model.layers[1]
    with torch.no_grad():
        gate, up = F.silu(layer.gate(read["layers.1.gate"])), layer.up(read["layers.1.gate"])
        site = sites["layers.1.down:projection"]
        assert close(site.gate, gate) and close(site.up, up)
        first, second = model.layers[2].both(read["layers.2.both"]).chunk(2, dim=-1)
        site = sites["layers.2.down:projection"]
        assert close(site.gate, F.silu(first)) and close(site.up, second)
    assert [name for name, one in sites.items() if one.gate is not None] == [
        "layers.1.down:projection",
        "layers.2.down:projection",
    ]
    assert {name for name, one in sites.items() if one.core is not None} == {
        f"layers.{at}.down:projection" for at in range(3)
    }


def close(histogram: Histogram | None, values: Tensor) -> bool:
    """Equal up to values that rounding moved across the edge of a bin."""
    assert histogram is not None
    moved = (histogram.counts - Histogram.of(values).counts).abs().sum()
    return histogram.rows == values.shape[0] and int(moved) <= 4


def test_projections_of_one_value_share_what_is_kept() -> None:
    sites = calibrate(stack(), batches()).sites
    gate, up = sites["layers.1.gate:projection"], sites["layers.1.up:projection"]
    assert gate.magnitude is up.magnitude and gate.weight != up.weight


def test_padded_tokens_do_not_count() -> None:
    model, ids = stack(), batches(1)[0]
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    found = calibrate(model, [{"input_ids": ids, "attention_mask": mask}])
    read = inputs_of(model, [ids])
    assert found.tokens == 11
    for name, values in read.items():
        assert found.sites[f"{name}:projection"].magnitude == Histogram.of(
            values[mask.flatten().bool()]
        )


def test_a_module_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self, breaks: bool) -> None:
            super().__init__()
            self.layer, self.breaks = nn.Linear(WIDTH, WIDTH), breaks

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x).relu()
            if self.breaks:
                torch._dynamo.graph_break()
            return self.layer(x)

    x = torch.randn(5, WIDTH)
    for breaks, names in ((False, ["", "#1"]), (True, [""])):
        model = Twice(breaks).eval()
        found = calibrate(model, [x])
        assert list(found.sites) == [f"layer:projection{mark}" for mark in names]
        with torch.no_grad():
            each = Histogram.of(x), Histogram.of(model.layer(x).relu())
        kept = [site.magnitude for site in found.sites.values()]
        assert kept == ([each[0] + each[1]] if breaks else list(each))


def test_batches_of_any_shape_and_spelling() -> None:
    ids = [torch.randint(0, 16, (1, tokens)) for tokens in (3, 9, 5, 3, 8)]
    model = stack()
    one = calibrate(model, ids)
    assert one.tokens == 28 and one.batches == 5
    for spelled in ([(x,) for x in ids], [{"input_ids": x} for x in ids], iter(ids)):
        assert written(calibrate(model, spelled)) == written(one)


def written(calibration: Calibration) -> str:
    """The text of its file."""
    return "".join(texts(calibration))


def test_the_same_batches_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        calibrate(stack(), batches(), path=tmp_path / name, sensitivity=True)
        torch._dynamo.reset()
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


def stopping(given: list[Tensor], after: int, error: BaseException) -> Iterator[Tensor]:
    yield from given[:after]
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no more data")])
def test_an_interrupted_run_goes_on_bit_for_bit(
    tmp_path: Path, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    path, whole = tmp_path / "c.yaml", tmp_path / "whole.yaml"
    calibrate(stack(), batches(5), path=whole, sensitivity=True)
    with pytest.raises(type(error)):
        calibrate(stack(), stopping(batches(5), 3, error), path=path, sensitivity=True)
    part = Calibration.load(path)
    assert (part.batches, part.complete) == (3, False)
    assert path.read_bytes() != whole.read_bytes()
    calibrate(stack(), batches(5), path=path, sensitivity=True, progress=True)
    assert path.read_bytes() == whole.read_bytes()
    assert "holds 3 batches, which are skipped" in capsys.readouterr().err


def test_an_error_within_a_batch_leaves_it_out_whole(tmp_path: Path) -> None:
    class Fails(Stack):
        def forward(self, input_ids: Tensor, fail: bool = False) -> Tensor:  # type: ignore[override]
            x = self.layers[0](self.embedding(input_ids))
            torch._dynamo.graph_break()
            if fail:
                raise ZeroDivisionError
            return self.head(x)

    path = tmp_path / "c.yaml"
    model, ids = Fails().eval(), batches(2)
    with pytest.raises(ZeroDivisionError):
        calibrate(model, [(ids[0],), (ids[1], True)], path=path)
    one = Calibration.load(path)
    assert one.batches == 1
    assert {site.rows for site in one.sites.values()} == {14}


def test_sensitivities_that_are_missing_are_measured_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "c.yaml", tmp_path / "whole.yaml"
    calibrate(stack(), batches(), path=whole, sensitivity=True)
    measure, seen = calibrating.Measurement.sensitivity, []

    def counted(self: Any, *args: Any) -> Any:
        seen.append(args[0])
        if len(seen) == 4:
            raise KeyboardInterrupt
        return measure(self, *args)

    monkeypatch.setattr(calibrating.Measurement, "sensitivity", counted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(stack(), batches(), path=path, sensitivity=True)
    part = Calibration.load(path)
    assert not part.complete
    assert sum(site.sensitivity is not None for site in part.sites.values()) == 3
    calibrate(stack(), batches(), path=path, sensitivity=True)
    assert len(seen) == 4 + len(part.sites) - 3
    assert path.read_bytes() == whole.read_bytes()
    calibrate(stack(), batches(), path=path, sensitivity=True)
    assert len(seen) == 4 + len(part.sites) - 3 and path.read_bytes() == whole.read_bytes()


def test_more_batches_make_sensitivities_old(tmp_path: Path) -> None:
    path, whole = tmp_path / "c.yaml", tmp_path / "whole.yaml"
    calibrate(stack(), batches(2), path=path, sensitivity=True)
    calibrate(stack(), batches(4), path=path, sensitivity=True)
    calibrate(stack(), batches(4), path=whole, sensitivity=True)
    assert path.read_bytes() == whole.read_bytes()


def test_the_file_is_written_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(calibrating, "SAVING_SHARE", 1e9)
    path, seen = tmp_path / "c.yaml", []

    def given() -> Iterator[Tensor]:
        for batch in batches(3):
            seen.append(Calibration.load(path).batches if path.exists() else 0)
            yield batch

    calibrate(stack(), given(), path=path)
    assert seen == [0, 1, 2] and Calibration.load(path).complete


@pytest.mark.parametrize(
    "other",
    [
        lambda: stack(1),
        lambda: Plain().eval(),
        lambda: nn.Sequential(nn.Embedding(16, WIDTH), nn.Linear(WIDTH, 3)).eval(),
    ],
    ids=["weights", "names", "smaller"],
)
def test_a_file_of_another_model_is_refused_and_kept(tmp_path: Path, other: Any) -> None:
    path = tmp_path / "c.yaml"
    calibrate(stack(), batches(2), path=path)
    before = path.read_bytes()
    model = other()
    given = [torch.randn(3, WIDTH)] * 3 if isinstance(model, Plain) else batches(3)
    with pytest.raises(UserError, match=r"of another model \(.*: give another path"):
        calibrate(model, given, path=path)
    assert path.read_bytes() == before


def test_fewer_batches_than_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    calibrate(stack(), batches(3), path=path)
    with pytest.raises(UserError, match="holds 3 batches, and there are 2"):
        calibrate(stack(), batches(2), path=path)


def test_a_damaged_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("version: 1\n")
    with pytest.raises(ConfigError, match="cut off"):
        calibrate(stack(), iter([1 / 1]), path=path)
    assert path.read_text() == "version: 1\n"


class NoLinear(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


REFUSALS = [
    (lambda: stack().train(), batches, {}, r"train mode: call model.eval\(\)"),
    (stack, list, {}, "got an empty iterable"),
    (stack, lambda: batches(1)[0], {}, r"got a Tensor: write \[batch\]"),
    (stack, lambda: {"input_ids": batches(1)[0]}, {}, r"got a dict: write \[batch\]"),
    (stack, lambda: 3, {}, "expected an iterable of batches, got a int"),
    (lambda: 3, batches, {}, "expected a model, got int"),
    (lambda: NoLinear().eval(), batches, {}, "expected a model with linear layers"),
    (stack, batches, {"path": "no_such_folder/c.yaml"}, "there is no folder no_such_folder"),
]


@pytest.mark.parametrize(("model", "given", "options", "told"), REFUSALS)
def test_refusals(model: Any, given: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        calibrate(model(), given(), **options)


def test_a_part_in_train_mode_is_refused() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1)).eval()
    model[1].train()
    with pytest.raises(UserError, match=r"acts as in training.*call model.eval\(\)"):
        calibrate(model, [torch.randn(2, WIDTH)])


def test_options_are_those_of_the_backend() -> None:
    with pytest.raises(OptionError, match="budgett"):
        calibrate(stack(), batches(), options={"budgett": 0.5})
    calibrate(stack(), batches(1), options={"budget": 0.5})


def test_what_is_no_number_is_counted_apart_and_told() -> None:
    model, x = Plain().eval(), torch.randn(4, WIDTH)
    x[1, 2] = float("nan")
    with pytest.warns(CalibrationWarning, match="in the inputs of 2 projections, 1 in up"):
        found = calibrate(model, [x])
    assert found.sites["up:projection"].magnitude.not_finite.sum() == 1
    assert found.sites["down:projection"].magnitude.not_finite.tolist() == [1] * HIDDEN
    assert found.sites["down:projection"].magnitude.energy().isfinite().all()


def test_graphs_that_cannot_be_read_are_told() -> None:
    class Mapped(Stack):
        def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[override]
            x = torch.func.vmap(torch.sin)(self.embedding(input_ids))
            torch._dynamo.graph_break()
            return self.head(x)

    with pytest.warns(CalibrationWarning, match="1 graphs were not observed because of"):
        found = calibrate(Mapped().eval(), batches(1))
    assert list(found.sites) == ["head:projection"]


def test_nothing_is_left_behind() -> None:
    model = stack()
    with torch.enable_grad():
        calibrate(model, batches())
        assert torch.is_grad_enabled()
    assert not _debug_get_cache_entry_list(Stack.forward.__code__)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(batches(1)[0]), model(batches(1)[0]))


def test_a_compiled_model_is_calibrated_as_it_is_written() -> None:
    plain = written(calibrate(stack(), batches()))
    assert written(calibrate(torch.compile(stack(), backend="eager"), batches())) == plain
    inside = stack()
    inside.compile(backend="eager")
    assert written(calibrate(inside, batches())) == plain


def test_the_option_reads_the_file_once(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    made = calibrate(stack(), batches(), path=path)
    config = read_options({"calibration": path})
    first = find_calibration(config)
    assert first is not None and first is find_calibration(read_options({"calibration": str(path)}))
    assert first.fingerprint == made.fingerprint
    assert find_calibration(read_options({"calibration": made})) is made
    assert find_calibration(read_options({})) is None
    calibrate(stack(), batches(4), path=path)
    again = find_calibration(config)
    assert again is not None and again.batches == 4


def test_a_damaged_file_is_told_by_the_backend(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("version: 1\n")
    compiled = torch.compile(stack(), backend="tokenpass", options={"calibration": str(path)})
    with pytest.raises(ConfigError, match=r"c\.yaml:1: .*cut off"), torch.no_grad():
        compiled(batches(1)[0])
    alike = SimpleNamespace(sites={}, batches=1, tokens=1, complete=True)
    with pytest.raises(OptionError, match="expected a path or a Calibration, got a SimpleN"):
        read_options({"calibration": alike})


def test_progress_is_told_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "rich_bar", lambda: None)
    calibrate(stack(), batches(2), progress=True)
    calibrate(stack(), iter(batches(1)), progress=True)
    assert capsys.readouterr().err.splitlines() == [
        "tokenpass: calibrating 1 of 2",
        "tokenpass: calibrating 2 of 2",
        "tokenpass: calibrating 1",
    ]
