"""The command: what it shows, and one clean message with exit code 2 for what a user can repair."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tokenpass import __version__
from tokenpass.cli import app, main
from tokenpass.cost.device import DEVICES, DeviceProfile, load_profile, shipped_profile
from tokenpass.edits import REJECTION_CODES
from tokenpass.errors import InternalError
from tokenpass.lower.kernel_cases import kernel_cases
from tokenpass.statistics import Calibration

USER = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(32, 32)

    def forward(self, x):
        heads = x.view(x.shape[0], -1, 4, 8).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        x = x + mixed.transpose(1, 2).reshape(x.shape)
        return x + self.mlp(x)

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x, scale=1.0):
        for layer in self.layers:
            x = layer(x)
        return x[:, 0] * scale

model = Encoder().eval()
inputs = torch.randn(2, 64, 32)
pair = (model, inputs)
by_name = (model, {"x": inputs})
triple = (model, (inputs,), {"scale": 2.0})
wrong_shape = (model, torch.randn(2, 64, 31))
number = 3

def make():
    return pair

def batches():
    return [torch.randn(1, 16, 32) for _ in range(2)]

trained = Encoder().train()

def fails():
    raise ValueError("bad luck")
"""


DECODING = """
import torch
from torch import nn

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 4096), nn.Linear(4096, 16)

    def forward(self, x):
        return x + self.down(self.up(x).relu())

made = Step().eval(), (torch.randn(1, 16),)
"""


CALIBRATE = ("calibrate", "users_code:model", "--out", "c.yaml", "--batches")


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the user's code, in which the command runs, 100 columns wide."""
    (tmp_path / "users_code.py").write_text(USER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENPASS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(app.out, "_width", 100)
    yield tmp_path
    sys.modules.pop("users_code", None)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["tokenpass", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    code = stopped.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize("name", ["make", "pair", "by_name", "triple"])
def test_explain(
    name: str, user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--budget", "50%", "--flops", "--save", "plan.yaml")
    assert run(monkeypatch, "explain", f"users_code:{name}", *arguments) == 0
    shown = capsys.readouterr().out
    for part in (
        "edited, budget 0.5",
        "MFLOP",
        "layers.2",
        "token_merge/head_cosine",
        "plan written",
    ):
        assert part in shown
    assert "at users_code.py:13 in forward" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert run(monkeypatch, "plan", "check", "plan.yaml") == 0
    assert "a plan of" in capsys.readouterr().out
    if name == "make":
        file = "users_code.py:make"
        assert run(monkeypatch, "explain", file, "--config", "plan.yaml") == 0
        assert "token_merge/head_cosine" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model", "make"])
def test_calibrate(
    name: str, user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--batches", "users_code:batches", "--out", "c.yaml", "--no-sensitivity")
    assert run(monkeypatch, "calibrate", f"users_code:{name}", *arguments) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "3 projections, 2 batches, 32 tokens",
        "calibration written: c.yaml",
        "use it with options={'calibration': 'c.yaml'}",
    ]
    assert "calibrating" in shown.err
    found = Calibration.load(user / "c.yaml")
    assert list(found.sites) == [f"layers.{at}.mlp:projection" for at in range(3)]
    assert all(site.sensitivity is None for site in found.sites.values())
    arguments = ("--batches", "users_code:batches", "--out", "c.yaml")
    assert run(monkeypatch, "calibrate", f"users_code:{name}", *arguments) == 0
    assert "c.yaml holds 2 batches, which are skipped" in capsys.readouterr().err
    found = Calibration.load(user / "c.yaml")
    assert all(site.sensitivity is not None for site in found.sites.values())


def test_explain_prints_kernels(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (user / "decoding.py").write_text(DECODING, encoding="utf-8")
    try:
        arguments = ("decoding:made", "--flops", "--kernels")
        assert run(monkeypatch, "explain", *arguments) == 0
    finally:
        sys.modules.pop("decoding", None)
    shown = capsys.readouterr().out
    for part in (
        "natural_zeros",
        "second copies of weights",
        "sparse_linear_",
        "in down",
        "operator sparse_linear, template cpp_sparse_linear",
        'extern "C"',
    ):
        assert part in shown
    arguments = ("users_code:make", "--budget", "50%", "--flops", "--kernels")
    assert run(monkeypatch, "explain", *arguments) == 0
    assert "operator bipartite_match" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "users_code"), "expected MODULE:NAME or FILE.py:NAME, got 'users_code'"),
        (("explain", "users_code:mak"), "has no 'mak' (did you mean 'make'?)"),
        (("explain", "no_such_module:x"), "importing no_such_module failed"),
        (("explain", "none.py:x"), "file not found: none.py"),
        (("explain", "users_code:number"), "to give (model, args)"),
        (("explain", "users_code:fails"), "ValueError: bad luck ("),
        (("explain", "users_code:wrong_shape"), "calling the model raised"),
        (("explain", "users_code:make", "--budget", "30"), '30 percent is written 0.3 or "30%"'),
        (("explain", "users_code:make", "--budget", "abc"), "budget: expected a share"),
        (("explain", "users_code:make", "--budget", "nan"), "budget: expected a share"),
        (("explain", "users_code:make", "--config", "no.yaml"), "no.yaml: file not found"),
        (("explain", "users_code:make", "--device-profile", "h20"), "did you mean 'h200'?"),
        ((*CALIBRATE, "users_code:number"), "expected an iterable of batches, got a int"),
        ((*CALIBRATE, "users_code:batchs"), "has no 'batchs' (did you mean 'batches'?)"),
        ((*CALIBRATE, "users_code:wrong_shape"), "calling the model raised"),
        (("calibrate", "users_code:number", *CALIBRATE[2:], "users_code:batches"), "give a model"),
        (("calibrate", "users_code:trained", *CALIBRATE[2:], "users_code:batches"), "model.eval()"),
        (("plan", "check", "no.yaml"), "no.yaml: file not found"),
        (("device", "--seconds", "0"), "seconds: expected at least 1"),
        (("device", "--device", "tpu"), "--device: expected cpu or cuda, got 'tpu'"),
        (("codes", "--bogus"), "No such option"),
        (("nonsense",), "No such command"),
    ],
)
def test_what_a_user_can_repair(
    arguments: tuple[str, ...],
    message: str,
    user: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not shown.out


def test_every_problem_of_a_file_with_its_line(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (user / "bad.yaml").write_text("version: 1\nbudgett: 1\npasses: [token_merg]\n")
    assert run(monkeypatch, "plan", "check", "bad.yaml") == 2
    shown = capsys.readouterr().err
    assert "bad.yaml:2: budgett: unknown option (did you mean 'budget'?)" in shown
    assert "bad.yaml:3: passes[0]: unknown pass 'token_merg'" in shown


def test_a_defect_is_no_user_error(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise InternalError("merge: node add_3")

    monkeypatch.setattr(app, "explain_call", broken)
    assert run(monkeypatch, "explain", "users_code:make") == 1
    assert "please report it: merge: node add_3" in capsys.readouterr().err


def test_device_measures_saves_and_shows(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def quick(
        device: torch.device, progress: object, seconds: float, kernels: object
    ) -> DeviceProfile:
        assert callable(progress)
        progress(0.5, "gemm")
        assert seconds == 45.0 and kernels is kernel_cases
        return shipped_profile(DEVICES[0])

    monkeypatch.setattr(app, "measure", quick)
    assert run(monkeypatch, "device", "--device", "cpu") == 0
    shown = capsys.readouterr().out
    (file,) = (user / "cache" / "devices").glob("cpu-*.yaml")
    assert load_profile(file) == shipped_profile(DEVICES[0])
    assert str(file) in shown
    assert "matrix product" in shown
    assert run(monkeypatch, "device", "--device", "cpu", "--out", "here.yaml") == 0
    assert "device_profile" in capsys.readouterr().out
    assert (user / "here.yaml").exists()


def test_codes_and_version(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "codes") == 0
    shown = capsys.readouterr().out
    assert all(code in shown for code in REJECTION_CODES)
    assert run(monkeypatch, "--version") == 0
    assert f"tokenpass {__version__}" in capsys.readouterr().out


def test_without_the_extra_it_says_what_to_install(repository: Path) -> None:
    code = "import sys; sys.modules['typer'] = None; from tokenpass.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.strip().endswith("run: pip install 'tokenpass[cli]'")
    assert "Traceback" not in done.stderr
