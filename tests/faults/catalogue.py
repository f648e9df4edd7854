"""The planted faults: what each got wrong, what can see it, and which check must."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from backends.acceptance.rules import judge_by_rejection
from backends.conformance.tiny_pairs import END_TOKENS, Relation
from tests.faults import decoders as d
from tests.faults.checks import Changes

Kind = Literal["distribution", "efficiency", "accounting"]

BY_CERTIFICATE = "certificate"
BY_END_TOKENS = "end tokens"
BY_WHITE_BOX = "white box"
BY_ALPHA = "alpha, uncached forwards"
BY_CLOSED_FORM = "alpha, draft == target"
BY_BLOCK_EFFICIENCY = "block efficiency, draft == target"
BY_DRAFT_LOGITS = "draft logits, uncached forward"

ENDING: tuple[Changes, ...] = ({"eos_token_ids": END_TOKENS},)
TOP_P: tuple[Changes, ...] = ({"top_p": 0.8, "temperature": 1.2},)
TWO_TEMPERATURES: tuple[Changes, ...] = ({"temperature": 0.5}, {"temperature": 1.2})


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    story: str
    kind: Kind
    check: str
    decoder: d.Decoder
    changes: tuple[Changes, ...] = ({},)
    relation: Relation = "near"


def distribution(
    name: str, story: str, decoder: d.Decoder, changes: tuple[Changes, ...] = ({},), *, check: str = BY_CERTIFICATE
) -> Fault:
    return Fault(name, story, "distribution", check, decoder, changes)


def efficiency(name: str, story: str, check: str, decoder: d.Decoder, changes: tuple[Changes, ...] = ({},)) -> Fault:
    return Fault(name, story, "efficiency", check, decoder, changes, "same" if "==" in check else "near")


def accounting(name: str, story: str, check: str, decoder: d.Decoder, changes: tuple[Changes, ...] = ({},)) -> Fault:
    return Fault(name, story, "accounting", check, decoder, changes)


FAULTS: tuple[Fault, ...] = (
    # temperature
    distribution(
        "verify at T = 1",
        "the request's temperature never reaches the verify pass",
        d.verifying(lambda r: replace(r, temperature=1.0)),
    ),
    distribution(
        "T applied twice to the target",
        "logits are divided by T by a processor and again by the sampler",
        d.verifying(lambda r: replace(r, temperature=r.temperature**2)),
    ),
    distribution(
        "T as an integer",
        "per-token temperatures are expanded into an int64 buffer: 0.8 becomes 0",
        d.verifying(lambda r: replace(r, temperature=float(int(r.temperature)))),
    ),
    distribution(
        "uninitialised T", "the float buffer of per-token temperatures is never written", d.verifying(d.uninitialised)
    ),
    distribution(
        "stale T",
        "each text is verified at the temperature of the request before",
        d.StaleTemperature,
        TWO_TEMPERATURES,
    ),
    # the test of a draft token
    distribution(
        "argmax draft, sampled q",
        "the draft takes its argmax, the test believes it was sampled",
        d.judging(judge_by_rejection, drafting="argmax"),
        ({"temperature": 1.2},),
    ),
    distribution("accepts if p >= q", "a threshold instead of a draw", d.judging(d.accepts_what_the_target_likes_better)),
    distribution(
        "accepts with p",
        "the test forgets to divide by q, the residual does not",
        d.judging(d.accepts_with_the_target_probability),
    ),
    distribution("first draft token always accepted", "the loop over tests starts at 1", d.judging(d.accepts_the_first_token)),
    distribution("tolerance of 20 %", "accepts when u < p/q + 0.2", d.judging(d.accepts_with_tolerance(0.2))),
    distribution(
        "greedy takes the second best",
        "at T = 0 a draft token among the target's two best passes",
        d.GreedyTakesTheSecondBest,
        ({"temperature": 0.0},),
    ),
    # random numbers
    distribution(
        "reseeded with a constant",
        "the generator is seeded with 42 before every acceptance draw",
        d.drawing(d.reseeded_from_a_constant),
    ),
    distribution(
        "reseeded with the request's seed",
        "the generator is seeded again before every acceptance draw",
        d.drawing(d.reseeded_from_the_request),
    ),
    distribution("reseeded every round", "all rounds of a text use the same random numbers", d.drawing(d.reseeded_every_round)),
    distribution(
        "noise shared with the draft",
        "the number that drew a draft token also tests it",
        d.drawing(d.noise_shared_with_the_draft),
        check=BY_WHITE_BOX,
    ),
    distribution(
        "recovered by the rejecting number",
        "the number that failed the test also draws the recovered token",
        d.judging(d.recovers_with_the_rejecting_uniform),
        check=BY_WHITE_BOX,
    ),
    # the recovered token
    distribution("no residual", "the recovered token is drawn from p", d.judging(d.residual_is_the_target)),
    distribution("absolute residual", "abs(p - q) in place of max(0, p - q)", d.judging(d.residual_is_absolute)),
    distribution(
        "residual not normalised",
        "the rest of the mass falls to the last token of the vocabulary",
        d.judging(d.residual_unnormalised),
    ),
    distribution("residual + eps", "1e-2 is added to every entry of the residual", d.judging(d.residual_with_epsilon(1e-2))),
    distribution(
        "recovered one position late",
        "the residual takes the target's next row",
        d.judging(d.residual_one_position_late),
    ),
    distribution(
        "residual with the last q",
        "the q of the last draft token serves every position",
        d.judging(d.residual_of_the_last_draft),
    ),
    # other rules
    distribution(
        "one_hot without the residual",
        "the rejected token is not excluded from the recovered ones",
        d.judging(d.one_hot_without_residual),
        ({"rule": "one_hot"},),
    ),
    distribution(
        "exact_match draws again",
        "the emitted token is not the sample that was compared",
        d.judging(d.exact_match_draws_again),
        ({"rule": "exact_match"},),
    ),
    distribution(
        "block without the residual",
        "block verification, then the recovered token is drawn from p",
        d.judging(d.block_without_residual),
        ({"rule": "block"},),
    ),
    # the first token, the bonus, the end
    distribution("greedy first token", "prefill takes the argmax", d.GreedyFirstToken, ({"max_new_tokens": 5},)),
    distribution("bonus from the draft", "after full acceptance the draft's next token is emitted", d.BonusFromTheDraft),
    distribution(
        "bonus one position early",
        "the bonus is drawn from the row of the last draft token",
        d.judging(d.bonus_one_position_early),
    ),
    distribution(
        "end token masked",
        "min_new_tokens stays switched on: no mass on the end token",
        d.EndTokenNeverInARound,
        ENDING,
        check=BY_END_TOKENS,
    ),
    # truncation and penalties
    distribution(
        "top-p after verification",
        "whole distributions are tested, only the target's own token is truncated",
        d.TopPAfterVerification,
        TOP_P,
    ),
    distribution("top-p before T", "the nucleus is that of T = 1", d.TopPBeforeTemperature, TOP_P),
    distribution(
        "top-p ignored by the target",
        "only the draft is truncated",
        d.verifying(lambda r: replace(r, top_p=1.0)),
        TOP_P,
    ),
    distribution("repetition penalty", "1.2 from the checkpoint's generation_config, never requested", d.RepetitionPenalty),
    # the target's cache
    distribution("rewinds one too few", "a rejected token stays in the target's cache", d.caching(target=d.RewindsTooLittle)),
    distribution(
        "rewinds one too many",
        "the last accepted token drops out of the target's cache",
        d.caching(target=d.RewindsTooMuch),
    ),
    distribution("never rewinds", "rejected tokens stay in the target's cache", d.caching(target=d.NeverRewinds)),
    distribution(
        "prefix of the last prompt", "a prefix cache compares lengths, not tokens", d.caching(target=d.ReusesThePrefix)
    ),
    # lossless, but not what it says it is
    efficiency(
        "draft at T squared",
        "warpers are applied twice to the draft",
        BY_CLOSED_FORM,
        d.drafting(lambda r: replace(r, draft_temperature=r.temperature**2)),
    ),
    efficiency(
        "draft at T = 1",
        "the draft is never warped",
        BY_CLOSED_FORM,
        d.drafting(lambda r: replace(r, draft_temperature=1.0)),
    ),
    efficiency(
        "draft without top-p",
        "only the target is truncated",
        BY_CLOSED_FORM,
        d.drafting(lambda r: replace(r, top_p=1.0)),
        TOP_P,
    ),
    efficiency(
        "sampled draft tested as certain",
        "the draft samples, the test takes q for a point mass",
        BY_CLOSED_FORM,
        d.judging(d.certain_draft),
    ),
    efficiency(
        "argmax draft called rejection",
        "a one_hot engine whose figures are printed as rejection's",
        BY_ALPHA,
        d.judging(d.certain_draft, drafting="argmax"),
    ),
    efficiency("exact match called rejection", "accepts only the target's own sample", BY_ALPHA, d.judging(d.own_sample)),
    efficiency(
        "bonus skipped",
        "the row after the last accepted draft token is thrown away",
        BY_BLOCK_EFFICIENCY,
        d.BonusSkipped,
    ),
    efficiency(
        "unsure draft stops",
        "a confidence threshold that is on by default",
        BY_BLOCK_EFFICIENCY,
        d.DraftStopsWhenUnsure,
    ),
    efficiency(
        "draft forgets its last token",
        "after full acceptance the draft is not fed the token it drafted last",
        BY_CLOSED_FORM,
        d.ForgetsTheLastDraft,
    ),
    efficiency("draft never rewinds", "rejected tokens stay in the draft's cache", BY_ALPHA, d.caching(draft=d.NeverRewinds)),
    efficiency(
        "draft has the last prompt's prefix",
        "the draft's prefix cache compares lengths, not tokens",
        BY_DRAFT_LOGITS,
        d.caching(draft=d.ReusesThePrefix),
    ),
    efficiency(
        "draft skips the prompt",
        "only the last prompt token reaches the draft",
        BY_CLOSED_FORM,
        d.caching(draft=d.SkipsThePrompt),
    ),
    # books
    accounting(
        "end token swallowed",
        "only the last token of a round is compared with the end token",
        "books",
        d.EndTokenSwallowed,
        ENDING,
    ),
    accounting(
        "end token stripped", "the end token is missing from the ids", "books", d.reporting(d.without_end_token), ENDING
    ),
    accounting("always 'length'", "the finish reason is never 'stop'", "books", d.reporting(d.always_length), ENDING),
    accounting(
        "accepted after the end",
        "draft tokens after an accepted end token count as accepted",
        "books",
        d.counting(d.accepted_after_the_end_token),
        ENDING,
    ),
    accounting(
        "bonus counted as accepted",
        "the target's own token is taken for a draft token",
        "books",
        d.counting(d.bonus_counted_as_accepted),
    ),
    accounting(
        "tokens counted by encoding again",
        "neighbours merge when the text is tokenised again",
        "books",
        d.reporting(d.retokenised),
    ),
    accounting("limit seen between rounds", "an output may be longer than requested", "books", d.LimitSeenBetweenRounds),
    accounting("rounds of the last prompt", "the list of rounds is not emptied", "books", d.RoundsOfTheLastPrompt),
    accounting("replay with another seed", "expected acceptance is that of another text", "replay", d.ReplaysAnotherSeed),
    accounting(
        "expected at T = 1",
        "acceptance is expected from unwarped probabilities",
        "replay",
        d.ReplayExpectsAtTemperatureOne,
    ),
    accounting(
        "expected for untested tokens",
        "draft tokens after a rejection count as tested",
        "replay",
        d.ReplayExpectsForUntested,
    ),
    accounting("seed ignored", "the request's seed is not used", "same seed", d.IgnoresTheSeed),
    accounting("global seed", "manual_seed on the whole process", "random state", d.SeedsTheWholeProcess),
)

# Too small for the certificate's sample of 4,000 tokens, or below its numerical allowance.
BELOW_RESOLUTION: tuple[Fault, ...] = (
    distribution(
        "block with a single residual",
        "block verification recovers from norm(max(0, p - q))",
        d.judging(d.block_with_single_residual),
        ({"rule": "block"},),
    ),
    distribution(
        "end token masked, by the certificate",
        "as above, seen only as a lack of 3 of 64 tokens",
        d.EndTokenNeverInARound,
        ENDING,
    ),
    distribution("tolerance of 5 %", "accepts when u < p/q + 0.05", d.judging(d.accepts_with_tolerance(0.05))),
    distribution(
        "residual + small eps", "1e-4 is added to every entry of the residual", d.judging(d.residual_with_epsilon(1e-4))
    ),
    distribution(
        "top-k of 50",
        "a library default, never requested; 64 tokens in all",
        d.verifying(lambda r: replace(r, top_k=50)),
    ),
    distribution(
        "random numbers in bfloat16",
        "torch.rand in the model's dtype: multiples of 1/256",
        d.drawing(d.drawn_in_bfloat16),
    ),
    distribution("float16 probabilities", "tests and residual in half precision", d.judging(d.in_half_precision)),
)
