"""Which tokens outputs need, on graphs made by hand."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tokenpass.graph.axis import find_axis
from tokenpass.graph.demand import demand_of
from tokenpass.graph.demand_lattice import Extent, Position
from tokenpass.graph.labels import Labels
from tokenpass.tracing import placeholders

X = torch.randn(2, 5, 4)


def demand_on_input(trace, function, *examples, batch=0, tokens=1):
    """Demand on the tokens of the first input, and the graph's nodes by name."""
    module = trace(function, *examples)
    labels, source = Labels(module.graph), placeholders(module)[0]
    axis, samples = labels[source][tokens][0].axis.root, labels[source][batch]
    samples = samples[0].axis.root if samples else None
    demands = demand_of(module, labels, axis, samples)
    nodes = {node.name: node for node in module.graph.nodes}
    return demands[source], nodes


def places(demand):
    return {position.at for position in demand.positions}


def test_all_tokens(trace):
    demand, _ = demand_on_input(trace, lambda x: x * 2, X)
    assert demand.extent is Extent.ALL and not demand.positions


def test_class_token(trace):
    demand, _ = demand_on_input(trace, lambda x: F.gelu(x)[:, 0], X)
    assert demand.extent is Extent.AT and places(demand) == {0}


def test_last_token_by_a_slice(trace):
    demand, _ = demand_on_input(trace, lambda x: (x + 1)[:, -1:], X)
    assert demand.extent is Extent.AT and places(demand) == {4}


def test_last_token_of_a_dynamic_length(trace):
    """The place counts from the end: no length is fixed."""
    module = trace(lambda x: (x + 1)[:, -1], X, dynamic=[(0, 1)])
    labels, source = Labels(module.graph), placeholders(module)[0]
    axis, batch = (labels[source][at][0].axis.root for at in (1, 0))
    assert places(demand_of(module, labels, axis, batch)[source]) == {-1}


def test_slices_out_of_range_read_what_is_there(trace):
    demand, _ = demand_on_input(trace, lambda x: x[:, -300:2] * 2, X)
    assert places(demand) == {0, 1}
    demand, _ = demand_on_input(trace, lambda x: (x[:, 3:3].sum(1), x[:, 0]), X)
    assert places(demand) == {0}


def test_several_readers(trace):
    demand, _ = demand_on_input(trace, lambda x: (x[:, 0], x[:, 2:4], x.mean(1)), X)
    assert demand.extent is Extent.WEIGHTED and places(demand) == {0, 2, 3}


def test_mean_and_sum_are_weighted(trace):
    for reduce in (lambda x: x.mean(1), lambda x: x.sum((0, 1))):
        assert demand_on_input(trace, reduce, X)[0].extent is Extent.WEIGHTED


def test_maximum_and_variance_need_all(trace):
    for reduce in (lambda x: x.amax(1), lambda x: x.var(1), lambda x: x.softmax(1)[:, 0]):
        assert demand_on_input(trace, reduce, X)[0].extent is Extent.ALL


def test_other_dimensions_do_not_matter(trace):
    demand, _ = demand_on_input(trace, lambda x: x.softmax(-1).mean(-1)[:, 1], X)
    assert places(demand) == {1} and demand.extent is Extent.AT


def test_position_that_the_graph_computes(trace):
    """The last token that is not padding: the index node is kept."""

    def last(x, ids):
        return x[torch.arange(x.shape[0]), ids.argmax(-1)]

    demand, nodes = demand_on_input(trace, last, X, torch.zeros(2, 5))
    assert demand.extent is Extent.AT and places(demand) == {nodes["argmax"]}


def test_positions_of_other_samples_are_not_trusted(trace):
    """One position per sample, of samples in another order, fewer of them, or of heads."""

    def flipped(x, ids):
        return x.flip(0)[torch.arange(x.shape[0]), ids.argmax(-1)]

    def first_two(x, ids):
        return x[torch.arange(2), ids.argmax(-1)[:2]]

    def other_order(x, ids):
        return x[ids.argmax(-1), torch.arange(2)]

    three = torch.randn(3, 5, 4)
    assert demand_on_input(trace, flipped, X, torch.zeros(2, 5))[0].extent is Extent.ALL
    assert demand_on_input(trace, first_two, three, torch.zeros(3, 5))[0].extent is Extent.ALL
    assert demand_on_input(trace, other_order, X, torch.zeros(2, 5))[0].extent is Extent.ALL

    def per_head(x, ids):
        return x[:, torch.arange(2), ids.argmax(-1)]

    heads = torch.randn(2, 2, 5, 4)
    demand, _ = demand_on_input(trace, per_head, heads, torch.zeros(2, 5), tokens=2)
    assert demand.extent is Extent.ALL


def test_constant_positions_survive_another_order_of_samples(trace):
    demand, _ = demand_on_input(trace, lambda x: x.flip(0)[:, 0], X)
    assert places(demand) == {0} and demand.extent is Extent.AT


def test_keys_and_values_are_needed_whole(trace):
    """One query is read; keys and values of all tokens make it."""

    def attend(x, y):
        return F.scaled_dot_product_attention(x, y * 1, y * 2)[:, 0]

    module = trace(attend, X, torch.randn(2, 5, 4))
    labels, (query, key) = Labels(module.graph), placeholders(module)
    for source, extent in ((query, Extent.AT), (key, Extent.ALL)):
        axis, batch = labels[source][1][0].axis.root, labels[source][0][0].axis.root
        assert demand_of(module, labels, axis, batch)[source].extent is extent


def test_scores_hold_the_axis_twice(trace):
    """Reading a row needs one query, reading a column of the transposed scores one key."""
    demand, _ = demand_on_input(trace, lambda x: (x @ x.transpose(1, 2))[:, 0], X)
    assert demand.extent is Extent.ALL and Position(0) in demand.positions
    module = trace(lambda x: (x @ x.transpose(1, 2)).transpose(1, 2)[:, 0], X)
    labels = Labels(module.graph)
    axis = labels[placeholders(module)[0]][1][0].axis.root
    batch = labels[placeholders(module)[0]][0][0].axis.root
    scores = next(node for node in module.graph.nodes if node.name == "matmul")
    assert demand_of(module, labels, axis, batch)[scores].extent is Extent.ALL


def test_a_look_up_by_tokens_speaks_of_the_first_ones(trace):
    """`out[b, i, j] = x[b, j, ids[i]]`: a row of the output needs all of x, a column one row."""

    def rows(x, ids):
        return (x + ids[:, None]).transpose(1, 2)[:, ids][:, 0]

    def columns(x, ids):
        return (x + ids[:, None])[:, :, ids][:, 0]

    ids = torch.randint(0, 4, (5,))
    assert demand_on_input(trace, rows, X, ids)[0].extent is Extent.ALL
    assert demand_on_input(trace, columns, X, ids)[0].extent is Extent.AT


def test_outputs_that_are_caches_need_all(trace):
    demand, _ = demand_on_input(trace, lambda x: (x[:, -1], x * 2), X)
    assert demand.extent is Extent.ALL and places(demand) == {4}


def test_unread_values_need_nothing(trace):
    """What only feeds an unread part of a list is not needed."""

    def second(x, y):
        return torch.stack([x, y])[1][:, 0]

    module = trace(lambda x: x.chunk(2, -1)[1][:, 0], X)
    labels, source = Labels(module.graph), placeholders(module)[0]
    axis, batch = (labels[source][at][0].axis.root for at in (1, 0))
    demands = demand_of(module, labels, axis, batch)
    assert demands[source].extent is Extent.AT
    assert find_axis(labels[source], axis) == (1, 0)


def test_operators_without_a_rule_need_all(trace):
    demand, _ = demand_on_input(trace, lambda x: torch.linalg.matrix_norm(x)[0], X)
    assert demand.extent is Extent.ALL
