"""Profiles as files: round trip, where they are found, what is wrong with bad ones."""

from __future__ import annotations

import logging

import pytest
import yaml

from tokenpass.cost.device import (
    DEVICES,
    DeviceProfile,
    cached_profile_path,
    find_profile,
    load_profile,
    profile_of_card,
    shipped_profile,
)
from tokenpass.cost.rates import RateTable
from tokenpass.errors import ConfigError

NUMBERS = (
    "gemm_gflop_per_s",
    "attention_gflop_per_s",
    "bandwidth_gb_per_s",
    "element_g_per_s",
    "launch_us",
    "call_us",
)


def test_round_trip(toy, tmp_path):
    path = tmp_path / "deep" / "toy.yaml"
    toy.save(path)
    assert load_profile(path) == toy


@pytest.mark.parametrize("name", DEVICES)
def test_shipped_profiles_name_the_source_of_every_number(name):
    profile = shipped_profile(name)
    assert profile.name == name
    assert "default" in profile.sources or set(profile.sources) >= set(NUMBERS)


CARDS = tuple(name for name in DEVICES if shipped_profile(name).kind == "cuda")


@pytest.mark.parametrize("name", CARDS)
def test_sources_of_cards_name_a_document_or_say_assumed(name):
    profile = shipped_profile(name)
    for key, source in profile.sources.items():
        if key != "call_us":
            assert any(
                kind in source for kind in ("data sheet", "whitepaper", "arXiv", "blog", "assumed")
            ), key
    # curves that are one number at every shape were not measured
    assert "no efficiency curve was measured" in profile.sources["gemm_gflop_per_s"]
    assert "assumed" in profile.sources["bandwidth_gb_per_s"]


@pytest.mark.parametrize("name", CARDS)
def test_numbers_of_a_card_agree_with_each_other(name):
    """One card's numbers come from several documents: a slip in one shows here."""
    profile = shipped_profile(name)
    fp32, half = (profile.gemm_gflop_per_s[d].values[0] for d in ("float32", "bfloat16"))
    attention = profile.attention_gflop_per_s["bfloat16"].values[0]
    elements, memory = profile.element_g_per_s, profile.bandwidth_gb_per_s.values[-1]
    # two flops in a fused multiply-add; 64 FP32 lanes in each SM of a GA100, 128 in the others
    assert elements["pointwise"] == pytest.approx(fp32 / 2, rel=0.02)
    assert profile.waves is not None
    clock_ghz = fp32 / 2 / profile.waves.processors / (64 if name.startswith("a100") else 128)
    assert 1.3 < clock_ghz < 2.6
    assert elements["special"] == pytest.approx(
        profile.waves.processors * 16 * clock_ghz / 4, rel=0.05
    )
    assert elements["gather"] == pytest.approx(memory / 16, rel=0.03)
    assert elements["scatter"] == pytest.approx(memory / 64, rel=0.07)
    assert 2 * fp32 <= half <= 16 * fp32
    assert 0.55 * half < attention < 0.75 * half
    # no card computes fewer than 60 or more than 450 half-precision operations for each byte
    assert 60 < half / memory < 450


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla T4", "a100"),
    ],
)
def test_a_card_finds_its_profile_by_name(card, name):
    assert profile_of_card(card) == name


def test_no_card_has_two_profiles():
    named = [card for name in DEVICES for card in shipped_profile(name).cards]
    assert len(named) == len(set(named)) >= len(CARDS)


def test_every_shipped_file_is_listed():
    from importlib.resources import files

    folder = files("tokenpass.cost").joinpath("devices")
    found = {item.name.removesuffix(".yaml") for item in folder.iterdir() if "yaml" in item.name}
    assert found == set(DEVICES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"launch_us": -1}, "launch_us"),
        ({"lanch_us": 1}, r"lanch_us.*did you mean 'launch_us'"),
        ({"kind": "tpu"}, "kind.*'cpu' or 'cuda'"),
        ({"version": 2}, "version"),
        ({"element_g_per_s": {"pointwise": "fast"}}, "element_g_per_s.pointwise"),
        ({"element_g_per_s": {"pointless": 1}}, "pointless"),
        ({"element_g_per_s": {"special": 1}}, "pointwise"),
        ({"gemm_gflop_per_s": {}}, "gemm_gflop_per_s.*float32"),
        ({"gemm_gflop_per_s": {"float32": {"axes": {"m": [1]}, "values": [1]}}}, "3 axes"),
    ],
)
def test_bad_profiles_name_the_key(toy, tmp_path, change, message):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(toy.model_dump(mode="json") | change))
    with pytest.raises(ConfigError, match=message) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["- a list", "key: [", ""])
def test_files_that_are_no_mapping(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_profile(path)


def test_names_and_paths(toy, tmp_path):
    assert find_profile("cpu", "h200").name == "h200"
    toy.save(tmp_path / "mine.yaml")
    assert find_profile("cpu", str(tmp_path / "mine.yaml")) == toy
    with pytest.raises(ConfigError, match="did you mean 'h200'"):
        find_profile("cpu", "h20")
    with pytest.raises(ConfigError, match="cannot be read"):
        find_profile("cpu", str(tmp_path / "missing.yaml"))


def test_measured_profile_comes_before_the_shipped_one(toy, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TOKENPASS_CACHE_DIR", str(tmp_path))
    with caplog.at_level(logging.INFO, logger="tokenpass"):
        assert find_profile("cpu").name == "generic-cpu"
    assert "tokenpass device" in caplog.text
    path = cached_profile_path("cpu")
    assert tmp_path in path.parents
    toy.save(path)
    assert find_profile("cpu") == toy


def rated(toy, **more):
    tables = {"float32": RateTable(axes={"rows": (1, 8)}, values=(20, 5))}
    return toy.model_copy(update={"weight_gb_per_s": {"few_rows": tables}, **more})


def test_rates_of_our_own_kernels_are_kept(toy, tmp_path):
    profile = rated(toy, kernel_launch_us=30.0)
    profile.save(tmp_path / "mine.yaml")
    assert load_profile(tmp_path / "mine.yaml") == profile


def test_a_file_from_before_those_rates_loads(toy, tmp_path):
    toy.save(tmp_path / "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    assert "weight_gb_per_s" not in text and "kernel_launch_us" not in text
    old = load_profile(tmp_path / "mine.yaml")
    assert old.weight_gb_per_s == {} and old.kernel_launch_us is None


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"gemm": {}}, "weight_gb_per_s: expected"),
        (
            {"few_rows": {"float32": {"axes": {"m": [1]}, "values": [1]}}},
            "weight_gb_per_s.few_rows.float32 needs the one axis `rows`",
        ),
    ],
)
def test_rates_of_unknown_work_or_axes_are_refused(toy, tables, message):
    data = {**toy.model_dump(mode="json"), "weight_gb_per_s": tables}
    with pytest.raises(ValueError, match=message):
        DeviceProfile.model_validate(data)
