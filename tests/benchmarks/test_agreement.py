"""Agreement with dense, and what "exact" allows."""

import pytest
import torch

from benchmarks.agreement import agreement, exactness, float64_output


def test_agreement_of_equal_and_of_opposite_outputs():
    output = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    assert agreement(output, output).relative_l2 == 0.0
    assert agreement(output, -output).relative_l2 == pytest.approx(2.0)
    assert agreement(output, -output).cosine == pytest.approx(-1.0)


def test_exactness_allows_twice_the_error_of_dense():
    reference = torch.ones(1000, dtype=torch.float64)
    dense = (reference + 1e-5).float()
    assert exactness(dense, (reference + 1.9e-5).float(), reference).holds
    assert not exactness(dense, (reference + 2.2e-5).float(), reference).holds


def test_exactness_allows_one_ulp_where_dense_is_perfect():
    reference = torch.ones(8, dtype=torch.float64)
    step = torch.finfo(torch.float32).eps
    assert exactness(reference.float(), reference.float() + step, reference).holds
    assert not exactness(reference.float(), reference.float() + 2 * step, reference).holds


def test_the_float64_reference_leaves_the_model_alone():
    model = torch.nn.Linear(3, 2)
    output = float64_output(model, {"input": torch.ones(1, 3)}, lambda result: result)
    assert output.dtype == torch.float64
    assert model.weight.dtype == torch.float32
