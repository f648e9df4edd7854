"""Makes an encoder-decoder pair from what the project ships: two small T5s, of one tokenizer of their own.

    python -m distill.commands.mini_t5 --out FOLDER --work FOLDER

The embedded SmolLM2 answers word problems, the project's instructions and prompts that it writes itself. A byte-level BPE
tokenizer is trained on that text, the target learns the answers' tokens, and the draft learns the target's distributions on
answers of the target's own, at T = 0, 0.1 .. 1 (recipe `base`). A stage that is done is found in the work folder; the same
command goes on with one that was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from backends.models import pairs
from bench.progress import Meter
from bench.prompts import sets as prompt_sets
from bench.prompts.make_word_problems import TEMPLATES
from bench.records.files import write_atomically
from distill.commands.distill import HELD_OUT
from distill.runs.job import CARD, DRAFT, Job, distill, prompts_by
from distill.text.prompts import encoded, user_turn
from distill.text.sampler import Answer, Ask
from distill.text.table import TextPlan, TextTable, extend, is_there, open_table, prompts_hash, write_shard
from distill.text.teacher import load_teacher
from distill.training import drafts, recipes
from distill.training.loop import FixedText, Position, TextLabels, TrainPlan, train

PAD, END = "<pad>", "</s>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.content }}{% if not loop.last %}\n\n{% endif %}{% endfor %}" + END
)
POSITIONS = 512  # as in a T5's configuration; relative positions have no end
TEXT_TEMPERATURE = 0.7  # of SmolLM2's answers


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is written and learnt."""

    word_problems: int = 3000  # made by our templates, none of the held-out ones
    self_written: int = 600  # prompts
    text_tokens: int = 100_000  # of SmolLM2's answers
    max_new_tokens: int = 96  # an answer, in SmolLM2's tokens and in ours
    vocabulary: int = 2048
    target_tokens: int = 2_000_000  # trained on, repetitions counted
    draft_text_tokens: int = 250_000
    draft_tokens: int = 2_000_000
    batch_tokens: int = 8192
    batch_rows: int = 256


def make(out: Path, work: Path, sizes: Sizes, *, seed: int = 0) -> None:
    """Both models as checkpoint folders `target` and `draft` of `out`, each with a card."""
    asked, answered = _text(work, sizes, seed)
    prompts = work / "prompts.jsonl"
    write_atomically(prompts, "".join(json.dumps({"prompt": text}) + "\n" for text in dict.fromkeys(asked)).encode())
    tokenizer = _tokenizer([*asked, *answered], sizes.vocabulary)
    _target(out / "target", work / "target", tokenizer, asked, answered, sizes, seed)
    _draft(out / "draft", work, out / "target", prompts, sizes, seed)


def _text(work: Path, sizes: Sizes, seed: int) -> tuple[list[str], list[str]]:
    """What SmolLM2 was asked and what it answered."""
    teacher = load_teacher(Path(pairs.ready(None).target), device="cpu")
    given = [*_word_problems(sizes.word_problems, seed), *_instructions()]
    with Meter("self-written prompts", sizes.self_written, unit="prompts") as meter:
        own = prompts_by(
            teacher, work / "texts", sizes.self_written, batch_rows=sizes.batch_rows, on_progress=meter.show
        )
    before, after = user_turn(teacher.tokenizer)
    asked_by_ids = dict(
        zip(encoded(prompt_sets.PromptSet("given", tuple(given)), teacher.tokenizer), _words(given), strict=True)
    )
    for ids in own:
        asked_by_ids[ids] = teacher.tokenizer.decode(ids[len(before) : len(ids) - len(after)])
    prompts = tuple(asked_by_ids)
    plan = TextPlan(
        model=teacher.sha256,
        prompts=prompts_hash(prompts),
        temperatures=((TEXT_TEMPERATURE, 1.0),),
        max_new_tokens=sizes.max_new_tokens,
        end_token_ids=teacher.end_token_ids,
        batch_rows=sizes.batch_rows,
        seed=seed,
    )
    folder, sampler = work / "texts" / plan.sha256[:16], teacher.sampler(sizes.max_new_tokens)
    with Meter("SmolLM2's answers", sizes.text_tokens) as meter:
        table = extend(
            folder,
            plan,
            prompts,
            sampler,
            num_tokens=sizes.text_tokens,
            on_progress=lambda table: meter.show(table.num_tokens),
        )
    asked = [asked_by_ids[tuple(row.prompt.tolist())] for row in table.rows]
    # A text that was cut off keeps no end; one that ended is marked by ours.
    answered = [
        teacher.tokenizer.decode(row.answer, skip_special_tokens=True)
        + (END if int(row.answer[-1]) in teacher.end_token_ids else "")
        for row in table.rows
    ]
    return asked, answered


def _word_problems(count: int, seed: int) -> list[prompt_sets.Prompt]:
    """Of our templates, in turn; none that a draft or target is measured on."""
    held_out = {prompt.messages for prompt in prompt_sets.load("word_problems:held_out").prompts}
    rng = random.Random(f"mini-t5 {seed}")
    made: list[prompt_sets.Prompt] = []
    for index in range(count):
        question, _ = TEMPLATES[index % len(TEMPLATES)](rng)
        prompt = prompt_sets.Prompt(index, (prompt_sets.Message("user", question),), None)
        if prompt.messages not in held_out:
            made.append(prompt)
    return made


def _instructions() -> list[prompt_sets.Prompt]:
    return list(prompt_sets.load("instructions:train").prompts)


def _words(prompts: Sequence[prompt_sets.Prompt]) -> Iterator[str]:
    for prompt in prompts:
        yield "\n\n".join(message.content for message in prompt.messages)


def _tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, digits one by one; plain text and chats end in the end token, as an encoder's input does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.removesuffix(END) for text in texts), trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def t5(
    *, vocabulary: int, width: int, heads: int, encoder_layers: int, decoder_layers: int, seed: int
) -> T5ForConditionalGeneration:
    """A T5 with gated feed-forward layers, one matrix for embedding and head, and random weights."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // heads,
        num_heads=heads,
        d_ff=2 * width,
        num_layers=encoder_layers,
        num_decoder_layers=decoder_layers,
        n_positions=POSITIONS,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    return model


def _target(
    out: Path,
    work: Path,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[str],
    answered: Sequence[str],
    sizes: Sizes,
    seed: int,
) -> None:
    if (out / CARD).is_file():
        return
    table = _in_our_tokens(work / "text", tokenizer, asked, answered, sizes)
    model = t5(vocabulary=len(tokenizer), width=128, heads=4, encoder_layers=4, decoder_layers=8, seed=seed)
    draft = drafts.trainable(model, "all")  # a target in training is a draft like any other
    plan = TrainPlan(num_tokens=sizes.target_tokens, batch_tokens=sizes.batch_tokens, learning_rate=3e-3)
    stream = FixedText(table.rows, plan.batch_tokens, seed)
    with Meter("target", plan.num_tokens) as meter:
        position = train(draft, stream, TextLabels(), plan, work, on_step=partial(_show, meter))
    model = drafts.snapshot(draft)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    card = {
        "text_tokens": table.num_tokens,
        "loss": sum(position.losses[-100:]) / len(position.losses[-100:]),
        "seconds": position.seconds,
        "sizes": asdict(sizes),
        "seed": seed,
    }
    write_atomically(out / CARD, json.dumps(card, indent=1).encode())


def _show(meter: Meter, position: Position) -> None:
    recent = position.losses[-20:]
    meter.show(position.num_tokens, f"loss {sum(recent) / len(recent):.3f}")


def _in_our_tokens(
    folder: Path, tokenizer: PreTrainedTokenizerFast, asked: Sequence[str], answered: Sequence[str], sizes: Sizes
) -> TextTable:
    """The text as rows to train on: prompts as a run encodes them, answers cut to the length of a run's."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, first in enumerate(range(0, len(asked), sizes.batch_rows)):
        rows = slice(first, first + sizes.batch_rows)
        if not is_there(folder, index):
            asks = [Ask(tuple(_ids(tokenizer, prompt + END)), TEXT_TEMPERATURE, 0) for prompt in asked[rows]]
            cut = [_ids(tokenizer, answer)[: sizes.max_new_tokens] for answer in answered[rows]]
            write_shard(folder, index, asks, [Answer(torch.tensor(ids), None) for ids in cut], seconds=0.0)
    return open_table(folder)


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _draft(out: Path, work: Path, target: Path, prompts: Path, sizes: Sizes, seed: int) -> None:
    if (out / CARD).is_file():
        return
    tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True)
    start = work / "start"
    model = t5(vocabulary=len(tokenizer), width=96, heads=3, encoder_layers=1, decoder_layers=1, seed=seed + 1)
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    job = Job(
        target=str(target),
        start=str(start),
        layers=(),
        trained="all",
        adapter_rank=8,
        recipe=recipes.base(1.0),
        plan=TrainPlan(num_tokens=sizes.draft_tokens, batch_tokens=sizes.batch_tokens, learning_rate=4e-3),
        text_tokens=sizes.draft_text_tokens,
        prompts=(str(prompts),),
        self_written=0,
        held_out=HELD_OUT,
        max_new_tokens=sizes.max_new_tokens,
        batch_rows=sizes.batch_rows,
        seed=seed,
    )
    distill(job, work / "draft", work / "texts")
    shutil.copytree(work / "draft" / DRAFT, out, dirs_exist_ok=True)
    shutil.copy(work / "draft" / CARD, out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m distill.commands.mini_t5", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the folders target and draft go")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where text and checkpoints are kept")
    args = parser.parse_args()
    make(args.out, args.work, Sizes())
    Console(stderr=True).print(f"specheat: target and draft are in {args.out}", highlight=False)


if __name__ == "__main__":
    main()
