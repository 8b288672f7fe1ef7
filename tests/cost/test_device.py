"""Profiles as files: round trip, where they are found, what is wrong with bad ones."""

from __future__ import annotations

import logging

import pytest
import yaml

from tokenpass.cost.device import (
    DEVICES,
    cached_profile_path,
    find_profile,
    load_profile,
    shipped_profile,
)
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
