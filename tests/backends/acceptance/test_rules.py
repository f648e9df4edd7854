"""Acceptance rules by three routes that must agree: closed form, direct sum, simulation.

The direct sum knows nothing of a rule but its `judge`: over every draft sequence of a small vocabulary it measures, to
1e-9, the share of uniform numbers that leads to each judgement. Models are trees of conditional distributions, different
after every prefix, so that a row taken from the wrong position shows.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.acceptance.rules import RULES, Rule, residual_distribution
from backends.acceptance.warping import sample, warp

LOSSLESS = [rule for rule in RULES.values() if rule.lossless]
IN_ORDER = [rule for rule in RULES.values() if not rule.jointly]
EVERY_RULE = list(RULES.values())

# Intervals are measured to 2^-32 and probabilities are float32.
MEASURED = 1e-6

derandomised = settings(derandomize=True, deadline=None, max_examples=150)
each_rule = pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.name)
each_lossless_rule = pytest.mark.parametrize("rule", LOSSLESS, ids=lambda rule: rule.name)

Tokens = tuple[int, ...]
Outcome = tuple[int, int]  # number accepted, next token


@dataclass(frozen=True)
class Tree:
    """A language model over `vocab_size` tokens: a distribution after every prefix of up to `depth` tokens."""

    vocab_size: int
    levels: tuple[Tensor, ...]  # level d: (V,) * d + (V,)

    def rows(self, tokens: Tokens, count: int) -> Tensor:
        """Return (count, V) distributions after the first 0, 1, .. tokens."""
        return torch.stack([self.levels[i][tokens[:i]] for i in range(count)])

    def probability(self, tokens: Tokens) -> float:
        """Return the probability of these tokens from the root."""
        return math.prod(self.levels[i][tokens[: i + 1]].item() for i in range(len(tokens)))


def random_tree(vocab_size: int, depth: int, *, seed: int, temperature: float = 1.0, top_p: float = 1.0) -> Tree:
    generator = torch.Generator().manual_seed(seed)
    levels = []
    for level in range(depth + 1):
        logits = 1.5 * torch.randn(vocab_size**level, vocab_size, generator=generator)
        probs = warp(logits, temperature=temperature, top_p=top_p)
        levels.append(probs.reshape((vocab_size,) * (level + 1)))
    return Tree(vocab_size, tuple(levels))


def drafts(rule: Rule, draft: Tree, num_drafted: int) -> Iterator[tuple[Tokens, float]]:
    """Yield every sequence of draft tokens that the rule's way of drafting can give, with its probability."""
    for tokens in itertools.product(range(draft.vocab_size), repeat=num_drafted):
        rows = draft.rows(tokens, num_drafted)
        if rule.drafting == "argmax":
            probability = float(all(rows[i].argmax() == token for i, token in enumerate(tokens)))
        else:
            probability = draft.probability(tokens)
        if probability > 0:
            yield tokens, probability


def judged(rule: Rule, tokens: Tokens, draft: Tree, target: Tree) -> Callable[[list[float]], Outcome]:
    """Return the rule's judgement of these draft tokens as a function of the uniform numbers alone."""
    num_drafted = len(tokens)
    arguments = (
        torch.tensor(tokens, dtype=torch.long),
        draft.rows(tokens, num_drafted),
        target.rows(tokens, num_drafted + 1),
    )

    def judge(uniforms: list[float]) -> Outcome:
        judgement = rule.judge(*arguments, torch.tensor(uniforms, dtype=torch.float64))
        return int(judgement.num_accepted), int(judgement.next_token)

    return judge


def jumps(function: Callable[[float], Outcome]) -> list[float]:
    """Return where a step function on [0, 1) changes its value, by bisection. It must never return to a value that it left."""

    def between(low: float, at_low: Outcome, high: float, at_high: Outcome) -> list[float]:
        if at_low == at_high:
            return []
        if high - low < 2**-32:
            return [high]
        middle = (low + high) / 2
        at_middle = function(middle)
        return between(low, at_low, middle, at_middle) + between(middle, at_middle, high, at_high)

    top = 1 - 2**-40
    return between(0.0, function(0.0), top, function(top))


def middles(edges: set[float]) -> list[tuple[float, float]]:
    """Return middle and length of each interval between the edges."""
    ends = [0.0, *sorted(edges), 1.0]
    return [((low + high) / 2, high - low) for low, high in itertools.pairwise(ends)]


def outcome_probabilities(judge: Callable[[list[float]], Outcome], num_drafted: int) -> dict[Outcome, float]:
    """Return the probability of each judgement: the unit cube is cut at every jump, and one point per box is judged."""
    point = [1 - 2**-40] * (num_drafted + 1)
    edges: list[set[float]] = [set() for _ in point]

    def cut(axis: int) -> None:
        def along(uniform: float) -> Outcome:
            return judge([*point[:axis], uniform, *point[axis + 1 :]])

        edges[axis].update(jumps(along))

    for axis in range(num_drafted):
        cut(axis)
        reached = {}
        for middle, _ in middles(edges[axis]):
            point[axis] = middle
            reached[judge(point)[0]] = middle
            cut(num_drafted)
        point[axis] = reached[max(reached)]  # the later tests only show after a pass
    cut(num_drafted)

    total: dict[Outcome, float] = defaultdict(float)
    for box in itertools.product(*(middles(axis_edges) for axis_edges in edges)):
        total[judge([middle for middle, _ in box])] += math.prod(length for _, length in box)
    return total


def summed(rule: Rule, draft: Tree, target: Tree, num_drafted: int) -> tuple[Tensor, dict[Tokens, Tensor]]:
    """Direct sum over draft tokens and uniforms.

    Returns: distribution of the next G + 1 tokens (those the round leaves open are continued by the target); and, for each
    prefix of draft tokens of length 0..G, the joint probability with each number accepted.
    """
    vocab_size = target.vocab_size
    emitted = torch.zeros((vocab_size,) * (num_drafted + 1), dtype=torch.float64)
    accepted: dict[Tokens, Tensor] = defaultdict(lambda: torch.zeros(num_drafted + 1, dtype=torch.float64))
    full = torch.tensor(
        [target.probability(tokens) for tokens in itertools.product(range(vocab_size), repeat=num_drafted + 1)],
        dtype=torch.float64,
    ).reshape(emitted.shape)
    for tokens, drafted_with in drafts(rule, draft, num_drafted):
        outcomes = outcome_probabilities(judged(rule, tokens, draft, target), num_drafted)
        for (num_accepted, next_token), probability in outcomes.items():
            prefix = (*tokens[:num_accepted], next_token)
            assert full[prefix].sum() > 0, "a token the target excludes was emitted"
            emitted[prefix] += drafted_with * probability * full[prefix] / full[prefix].sum()
            for length in range(num_drafted + 1):
                accepted[tokens[:length]][num_accepted] += drafted_with * probability
    return emitted - full, accepted


SHAPES = [(2, 3), (4, 2), (5, 1)]  # vocabulary, draft positions
VARIANTS = {"full support": {}, "top-p": {"top_p": 0.8}, "cold": {"temperature": 0.2}, "greedy": {"temperature": 0}}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("vocab_size", "num_drafted"), SHAPES)
@each_rule
def test_direct_sum_agrees_with_the_target_and_with_the_acceptance_probabilities(rule, vocab_size, num_drafted, variant):
    target = random_tree(vocab_size, num_drafted, seed=11, **VARIANTS[variant])
    draft = random_tree(vocab_size, num_drafted, seed=12, **VARIANTS[variant])
    error, accepted = summed(rule, draft, target, num_drafted)
    if rule.lossless or variant == "greedy":
        assert error.abs().max() < MEASURED
    assert_acceptance_agrees(rule, draft, target, accepted)


def assert_acceptance_agrees(rule: Rule, draft: Tree, target: Tree, accepted: dict[Tokens, Tensor]) -> None:
    num_drafted = len(accepted[()]) - 1
    for tokens, _ in drafts(rule, draft, num_drafted):
        claimed = rule.acceptance_probs(
            torch.tensor(tokens), draft.rows(tokens, num_drafted), target.rows(tokens, num_drafted + 1)
        ).tolist()
        for i, probability in enumerate(claimed):
            if rule.jointly:
                counts = accepted[tokens[: i + 1]]
                assert probability == pytest.approx((counts[i + 1 :].sum() / counts.sum()).item(), abs=MEASURED)
            else:
                counts = accepted[tokens[:i]]
                tested, passed = counts[i:].sum().item(), counts[i + 1 :].sum().item()
                # The probability of getting there can be tiny, and intervals are measured to 1e-9.
                assert probability * tested == pytest.approx(passed, abs=MEASURED)


def test_the_typical_rule_is_lossy():
    target, draft = random_tree(4, 1, seed=21), random_tree(4, 1, seed=22)
    error, _ = summed(RULES["typical"], draft, target, 1)
    assert error.abs().sum() > 0.05


# Closed forms, in plain Python from the definitions. Each takes p and q at one position.
def rejection_beta(p: list[float], q: list[float]) -> float:
    return sum(min(pair) for pair in zip(p, q, strict=True))


def one_hot_beta(p: list[float], q: list[float]) -> float:
    return p[q.index(max(q))]


def exact_match_beta(p: list[float], q: list[float]) -> float:
    return sum(a * b for a, b in zip(p, q, strict=True))


def typical_beta(p: list[float], q: list[float]) -> float:
    entropy = -sum(a * math.log(a) for a in p if a > 0)
    return sum(b for a, b in zip(p, q, strict=True) if a > min(0.09, 0.3 * math.exp(-entropy)))


CLOSED_FORMS = {
    "rejection": rejection_beta,
    "one_hot": one_hot_beta,
    "exact_match": exact_match_beta,
    "typical": typical_beta,
}


def distributions(vocab_size: int) -> st.SearchStrategy[list[float]]:
    """Draw distributions with zeros, ties and near-ties."""
    weights = st.lists(st.sampled_from([0, 0, 1, 1.0000002, 3, 50]), min_size=vocab_size, max_size=vocab_size)
    return weights.filter(any).map(lambda row: [weight / sum(row) for weight in row])


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the arguments of a judgement: draft tokens that the draft can draw, draft_probs, target_probs, uniforms."""
    vocab_size, num_drafted = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    draft_rows = [draw(distributions(vocab_size)) for _ in range(num_drafted)]
    target_rows = [draw(distributions(vocab_size)) for _ in range(num_drafted + 1)]
    tokens = [draw(st.sampled_from([v for v in range(vocab_size) if row[v] > 0])) for row in draft_rows]
    uniform = st.one_of(st.floats(0, 1 - 2**-53), st.sampled_from([0.0, 0.5, 1 - 2**-53]))
    uniforms = [draw(uniform) for _ in range(num_drafted + 1)]
    return (
        torch.tensor(tokens, dtype=torch.long),
        torch.tensor(draft_rows, dtype=torch.float32).reshape(num_drafted, vocab_size),
        torch.tensor(target_rows, dtype=torch.float32),
        torch.tensor(uniforms, dtype=torch.float64),
    )


@pytest.mark.parametrize("rule", IN_ORDER, ids=lambda rule: rule.name)
@derandomised
@given(rounds())
def test_acceptance_probabilities_agree_with_their_closed_form(rule, arguments):
    tokens, draft_probs, target_probs, _ = arguments
    expected = [CLOSED_FORMS[rule.name](p, q) for p, q in zip(target_probs[:-1].tolist(), draft_probs.tolist(), strict=True)]
    # float32 sums of five terms; min(p, q) may add up to just above 1
    assert rule.acceptance_probs(tokens, draft_probs, target_probs).tolist() == pytest.approx(expected, abs=1e-6)


@each_rule
@derandomised
@given(rounds())
def test_a_judgement_never_emits_what_the_target_excludes(rule, arguments):
    tokens, _, target_probs, _ = arguments
    judgement = rule.judge(*arguments)
    num_accepted, next_token = int(judgement.num_accepted), int(judgement.next_token)
    assert 0 <= num_accepted <= len(tokens)
    assert target_probs[num_accepted, next_token] > 0
    assert all(target_probs[i, tokens[i]] > 0 for i in range(num_accepted))


@derandomised
@given(rounds())
def test_a_recovered_token_is_one_the_draft_gave_too_little(arguments):
    tokens, draft_probs, target_probs, _ = arguments
    for name in ("rejection", "one_hot", "exact_match"):
        judgement = RULES[name].judge(*arguments)
        num_accepted, next_token = int(judgement.num_accepted), int(judgement.next_token)
        if num_accepted == len(tokens):
            continue
        if name == "rejection":
            excess = target_probs[num_accepted] - draft_probs[num_accepted]
            # Near-ties may be rejected by rounding alone, with no excess anywhere.
            assert excess[next_token] > 0 or excess.max() <= 0
        else:
            assert next_token != tokens[num_accepted]


@derandomised
@given(rounds())
def test_a_draft_equal_to_the_target_is_always_accepted_by_the_ratio_rules(arguments):
    tokens, draft_probs, target_probs, uniforms = arguments
    target_probs = torch.cat((draft_probs, target_probs[-1:]))
    for name in ("rejection", "block"):
        assert RULES[name].judge(tokens, draft_probs, target_probs, uniforms).num_accepted == len(tokens)
        assert RULES[name].acceptance_probs(tokens, draft_probs, target_probs).tolist() == pytest.approx([1.0] * len(tokens))


@pytest.mark.parametrize("seed", range(12))
def test_block_verification_keeps_at_least_as_many_tokens_as_rejection_and_no_more_than_the_optimum(seed):
    vocab_size, num_drafted = 2 + seed % 3, 1 + seed % 4
    target, draft = (
        random_tree(vocab_size, num_drafted, seed=seed),
        random_tree(vocab_size, num_drafted, seed=seed + 99),
    )
    block, rejection, optimum = 0.0, 0.0, 0.0
    for tokens, drafted_with in drafts(RULES["block"], draft, num_drafted):
        rows = torch.tensor(tokens), draft.rows(tokens, num_drafted), target.rows(tokens, num_drafted + 1)
        block += drafted_with * RULES["block"].acceptance_probs(*rows).sum().item()
        for length in range(1, num_drafted + 1):
            pairs = [(target.levels[i][tokens[: i + 1]], draft.levels[i][tokens[: i + 1]]) for i in range(length)]
            rejection += drafted_with * math.prod(min(1.0, (p / q).item()) for p, q in pairs)
            optimum += drafted_with * min(1.0, target.probability(tokens[:length]) / draft.probability(tokens[:length]))
    assert rejection - MEASURED <= block <= optimum + MEASURED
    if num_drafted == 1:
        assert block == pytest.approx(rejection, abs=MEASURED)


def test_the_worked_example_of_the_block_verification_paper():
    # Section 2 of Sun et al.: p = (1/3, 2/3), q = (2/3, 1/3), two draft tokens; 10/9 tokens by rejection, 11/9 by block.
    target = Tree(2, tuple(torch.tensor([1 / 3, 2 / 3]).expand((2,) * (level + 1)) for level in range(3)))
    draft = Tree(2, tuple(torch.tensor([2 / 3, 1 / 3]).expand((2,) * (level + 1)) for level in range(3)))
    for name, expected in (("rejection", 10 / 9), ("block", 11 / 9)):
        _, accepted = summed(RULES[name], draft, target, 2)
        assert (accepted[()] * torch.arange(3)).sum().item() == pytest.approx(expected, abs=MEASURED)


# 99.999 % quantile of chi-square with 80 degrees of freedom (81 sequences, fixed total).
CHI_SQUARE_LIMIT = 146.0


@each_lossless_rule
def test_simulated_decoding_follows_the_target(rule):
    """4 tokens of a Markov chain over 3 states, decoded in rounds; about 1 false alarm in 100,000 seeds, seed fixed."""
    generator = torch.Generator().manual_seed(31)
    target = warp(torch.randn(3, 3, generator=generator), temperature=0.8)
    draft = warp(torch.randn(3, 3, generator=generator), temperature=1.2)
    num_sequences, length, num_drafted = 3000, 4, 2
    counts = torch.zeros((3,) * length)
    excess = []  # tokens accepted above expectation, a round
    for _ in range(num_sequences):
        tokens = [0]
        while len(tokens) <= length:
            fed = tokens[-1:]
            for uniform in torch.rand(num_drafted, dtype=torch.float64, generator=generator).split(1):
                row = draft[fed[-1:]]
                fed.append(int(row.argmax() if rule.drafting == "argmax" else sample(row, uniform)))
            uniforms = torch.rand(num_drafted + 1, dtype=torch.float64, generator=generator)
            arguments = torch.tensor(fed[1:]), draft[fed[:-1]], target[fed]
            judgement = rule.judge(*arguments, uniforms)
            num_accepted = int(judgement.num_accepted)
            tokens += [*fed[1 : num_accepted + 1], int(judgement.next_token)]
            beta = rule.acceptance_probs(*arguments).tolist()
            tested = num_drafted if rule.jointly else min(num_accepted + 1, num_drafted)
            excess.append(num_accepted - sum(beta[:tested]))
        counts[tuple(tokens[1 : length + 1])] += 1
    expected = num_sequences * torch.tensor(
        [
            math.prod(target[a, b].item() for a, b in itertools.pairwise((0, *path)))
            for path in itertools.product(range(3), repeat=length)
        ]
    )
    assert ((counts.flatten() - expected) ** 2 / expected).sum() < CHI_SQUARE_LIMIT
    # A martingale: 4.5 standard deviations are passed by 1 seed in 100,000.
    assert abs(sum(excess)) < 4.5 * math.sqrt(sum(one * one for one in excess))


@each_rule
def test_with_no_draft_token_the_target_draws_the_bonus_token(rule):
    target_probs = torch.tensor([[0.0, 0.25, 0.75]])
    empty = torch.empty(0, dtype=torch.long), torch.empty(0, 3), target_probs
    for uniform, token in ((0.0, 1), (0.2, 1), (0.3, 2), (0.99, 2)):
        judgement = rule.judge(*empty, torch.tensor([uniform]))
        assert (int(judgement.num_accepted), int(judgement.next_token)) == (0, token)
    assert rule.acceptance_probs(*empty).shape == (0,)


@each_rule
def test_a_vocabulary_of_one_token_is_always_accepted(rule):
    certain = torch.ones(4, 1)
    for uniform in (0.0, 1 - 2**-53):
        uniforms = torch.full((4,), uniform, dtype=torch.float64)
        judgement = rule.judge(torch.zeros(3, dtype=torch.long), certain[:3], certain, uniforms)
        assert (int(judgement.num_accepted), int(judgement.next_token)) == (3, 0)


@each_rule
@pytest.mark.parametrize("uniform", [0.0, 0.4, 0.8, 1 - 2**-53])
def test_disjoint_supports_reject_everything_and_draw_from_the_target(rule, uniform):
    draft_probs = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]])
    target_probs = torch.tensor([[0, 0, 0.5, 0.5]]).expand(3, 4)
    tokens = torch.tensor([0, 0])
    judgement = rule.judge(tokens, draft_probs, target_probs, torch.full((3,), uniform, dtype=torch.float64))
    assert (int(judgement.num_accepted), int(judgement.next_token)) == (0, 2 if uniform < 0.5 else 3)
    assert rule.acceptance_probs(tokens, draft_probs, target_probs).tolist() == [0, 0]


@each_rule
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_greedy_decoding_keeps_exactly_the_drafts_that_are_the_argmax(rule, uniform):
    target_logits = torch.tensor([[0.0, 2, 1], [5, 1, 5], [1, 1, 4], [0, 3, 3]])
    draft_logits = torch.tensor([[0.0, 9, 1], [7, 7, 2], [8, 1, 4]])
    target_probs, draft_probs = warp(target_logits, temperature=0), warp(draft_logits, temperature=0)
    tokens = draft_probs.argmax(-1)
    judgement = rule.judge(tokens, draft_probs, target_probs, torch.full((4,), uniform, dtype=torch.float64))
    assert (int(judgement.num_accepted), int(judgement.next_token)) == (2, 2)
    assert rule.acceptance_probs(tokens, draft_probs, target_probs).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "limit"), [("rejection", 1), ("block", 1), ("one_hot", 1 / 5), ("exact_match", 1 / 5), ("typical", 1)]
)
def test_at_an_infinite_temperature_both_models_are_uniform(name, limit):
    generator = torch.Generator().manual_seed(41)
    target_probs = warp(torch.randn(4, 5, generator=generator), temperature=1e9)
    draft_probs = warp(torch.randn(3, 5, generator=generator), temperature=1e9)
    probs = RULES[name].acceptance_probs(torch.tensor([4, 0, 2]), draft_probs, target_probs)
    assert probs.tolist() == pytest.approx([limit] * 3, abs=1e-6)


@pytest.mark.parametrize("same_argmax", [True, False])
@each_rule
def test_towards_zero_temperature_acceptance_becomes_agreement_of_the_argmax(rule, same_argmax):
    target_logits = torch.tensor([[1.0, 3, 2], [0, 1, 2]])
    draft_logits = torch.tensor([[0.0, 2, 1]]) if same_argmax else torch.tensor([[0.0, 1, 2]])
    for temperature in (0.05, 0.01, 1e-6, 0):
        draft_probs = warp(draft_logits, temperature=temperature)
        target_probs = warp(target_logits, temperature=temperature)
        probs = rule.acceptance_probs(draft_probs.argmax(-1), draft_probs, target_probs)
        # exp(-1 / 0.05) of the second best token is left at the highest of these temperatures
        assert probs.item() == pytest.approx(float(same_argmax), abs=1e-8)


def test_the_residual_distribution_is_the_normalised_excess_of_the_target():
    target_probs = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.0, 0.0]])
    draft_probs = torch.tensor([[0.2, 0.6, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.5, 0.5]])
    expected = torch.tensor([[0.75, 0.0, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(residual_distribution(target_probs, draft_probs), expected)


def test_the_residual_distribution_of_nearly_equal_models_is_normalised_and_stays_on_the_target():
    generator = torch.Generator().manual_seed(51)
    logits = 3 * torch.randn(20, 1000, generator=generator)
    target_probs = warp(logits, temperature=1, top_p=0.9)
    draft_probs = warp(logits + 1e-7 * torch.randn(logits.shape, generator=generator), temperature=1, top_p=0.9)
    residual = residual_distribution(target_probs, draft_probs)
    torch.testing.assert_close(residual.sum(-1), torch.ones(20))
    assert ((residual > 0) <= (target_probs > 0)).all()


def test_the_residual_distribution_is_the_target_where_rounding_left_no_excess():
    target_probs, draft_probs = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.5000001, 0.5, 0.0000001]])
    assert torch.equal(residual_distribution(target_probs, draft_probs), target_probs)


@pytest.mark.parametrize("name", ["rejection", "block"])
def test_a_rejection_by_rounding_alone_loses_one_token_and_draws_from_the_target(name):
    equal = torch.tensor([0.5, 0.5])
    # The second draft token's q is one bit above p and nothing of p - q is left elsewhere.
    draft_probs = torch.stack((equal, torch.tensor([0.5000001, 0.5])))
    uniforms = torch.tensor([0.0, 1 - 2**-53, 0.7], dtype=torch.float64)
    judgement = RULES[name].judge(torch.tensor([0, 0]), draft_probs, equal.expand(3, 2), uniforms)
    assert (int(judgement.num_accepted), int(judgement.next_token)) == (1, 1)


@pytest.mark.parametrize(
    ("target_row", "tested", "accepted"),
    [
        ([0.87, 0.13], 1, True),  # above epsilon = 0.09, below 0.3 exp(-H) = 0.20
        ([0.93, 0.07], 1, False),  # below both
        ([0.06] * 15 + [0.1], 0, True),  # flat: below epsilon, above 0.3 exp(-H) = 0.02
        ([0.9925 / 9] * 9 + [0.0075], 9, False),  # flat, below 0.3 exp(-H) = 0.03
    ],
)
def test_the_typical_rule_asks_for_less_where_the_target_is_flat(target_row, tested, accepted):
    target_probs = torch.tensor([target_row]).expand(2, -1)
    draft_probs = torch.full((1, len(target_row)), 1 / len(target_row))
    judgement = RULES["typical"].judge(torch.tensor([tested]), draft_probs, target_probs, torch.tensor([0.5, 0.5]))
    assert judgement.num_accepted == accepted


@each_rule
def test_a_judgement_is_two_scalars_and_changes_nothing_it_was_given(rule):
    target, draft = random_tree(4, 3, seed=61), random_tree(4, 3, seed=62)
    arguments = torch.tensor([1, 2, 0]), draft.rows((1, 2, 0), 3), target.rows((1, 2, 0), 4), torch.full((4,), 0.7)
    before = [argument.clone() for argument in arguments]
    judgement = rule.judge(*arguments)
    rule.acceptance_probs(*arguments[:3])
    assert all(torch.equal(*pair) for pair in zip(arguments, before, strict=True))
    assert judgement.num_accepted.shape == judgement.next_token.shape == ()


@each_rule
def test_no_rule_waits_for_the_device(rule):
    # Meta tensors have no values: any step that needed one on the host would raise.
    arguments = (
        torch.empty(3, dtype=torch.long, device="meta"),
        torch.empty(3, 7, device="meta"),
        torch.empty(4, 7, device="meta"),
        torch.empty(4, dtype=torch.float64, device="meta"),
    )
    judgement = rule.judge(*arguments)
    assert judgement.num_accepted.device.type == judgement.next_token.device.type == "meta"
    assert rule.acceptance_probs(*arguments[:3]).shape == (3,)
