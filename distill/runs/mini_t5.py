"""The embedded encoder-decoder pair: two small T5s over one tokenizer, made only from what the project ships.

1. The embedded SmolLM2 answers word problems, the project's instructions, and prompts that it writes itself.
2. A byte-level BPE tokenizer is trained on that text.
3. The target learns the tokens of the answers.
4. The draft learns the target's distributions on answers of the target, at T = 0, 0.1 .. 1 (recipe `base`).

A finished stage is found in the work folder, so a run that was stopped continues there.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from backends.models import pairs
from bench.progress import Meter
from bench.prompts import sets as prompt_sets
from bench.prompts.make_word_problems import TEMPLATES
from bench.prompts.sets import Message, Prompt, PromptSet
from bench.records.storage import write_atomically
from distill.runs.distillation import distill
from distill.runs.job import CARD, DRAFT, HELD_OUT, Job
from distill.runs.training_text import prompts_by
from distill.text.prompts import encoded, user_turn
from distill.text.sampler import Answer, Request
from distill.text.table import TextTable, extend, is_there, open_table, write_shard
from distill.text.teacher import load_teacher
from distill.training import drafts, recipes
from distill.training.loop import Position, TrainPlan, fixed_text, text_labels, train

PAD, END = "<pad>", "</s>"
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{% if not loop.last %}\n\n{% endif %}{% endfor %}" + END
POSITIONS = 512  # in the configuration of a T5; its relative positions have no limit
TEXT_TEMPERATURE = 0.7  # of SmolLM2's answers


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is written and learnt."""

    word_problems: int = 3000  # made by our templates, none of the held-out ones
    self_written: int = 600  # prompts
    text_tokens: int = 100_000  # of SmolLM2's answers
    max_new_tokens: int = 96  # of an answer, in SmolLM2's tokens and in ours
    vocabulary: int = 2048
    target_tokens: int = 2_000_000  # trained on, repetitions included
    draft_text_tokens: int = 250_000
    draft_tokens: int = 2_000_000
    batch_tokens: int = 8192
    batch_rows: int = 256


Text = list[tuple[str, str]]  # prompts and answers; an answer ends with END unless it was cut off


def make(out: Path, work: Path, sizes: Sizes, *, seed: int = 0) -> None:
    """Make both models as checkpoint folders `target` and `draft` of `out`, each with a card."""
    text = _text(work, sizes, seed)
    prompts, (given, answered) = work / "prompts.jsonl", zip(*text, strict=True)
    write_atomically(prompts, "".join(json.dumps({"prompt": each}) + "\n" for each in dict.fromkeys(given)))
    tokenizer = tokenizer_on([*given, *answered], sizes.vocabulary)
    if not (out / "target" / CARD).is_file():
        _target(out / "target", work / "target", tokenizer, text, sizes, seed)
    if not (out / "draft" / CARD).is_file():
        _draft(out / "draft", work, out / "target", prompts, sizes, seed)


def _text(work: Path, sizes: Sizes, seed: int) -> Text:
    """Return the prompts that SmolLM2 was given, with its answers."""
    teacher = load_teacher(Path(pairs.ready(None).target), device="cpu")
    given = given_prompts(sizes.word_problems, seed)
    with Meter("self-written prompts", sizes.self_written, unit="prompts") as meter:
        own = prompts_by(teacher, work / "texts", sizes.self_written, batch_rows=sizes.batch_rows, meter=meter)
    before, after = user_turn(teacher.tokenizer)
    words = ("\n\n".join(message.content for message in prompt.messages) for prompt in given)
    words_of = dict(zip(encoded(PromptSet("given", given), teacher.tokenizer), words, strict=True))
    words_of |= {ids: teacher.tokenizer.decode(ids[len(before) : len(ids) - len(after)]) for ids in own}
    prompts = tuple(words_of)
    shares, longest = ((TEXT_TEMPERATURE, 1.0),), sizes.max_new_tokens
    plan = teacher.plan(prompts, shares, max_new_tokens=longest, batch_rows=sizes.batch_rows, seed=seed)
    folder, sampler = work / "texts" / plan.folder_name, teacher.sampler(longest)
    with Meter("SmolLM2's answers", sizes.text_tokens) as meter:
        rows = extend(folder, plan, prompts, sampler, num_tokens=sizes.text_tokens, on_progress=meter.show).rows
    text = []
    for row in rows:
        end = END if int(row.answer[-1]) in teacher.end_token_ids else ""
        answer = teacher.tokenizer.decode(row.answer, skip_special_tokens=True) + end
        text.append((words_of[tuple(row.prompt.tolist())], answer))
    return text


def given_prompts(num_word_problems: int, seed: int) -> tuple[Prompt, ...]:
    """Return word problems of our templates in turn and our training instructions, without prompts that are held out."""
    held_out = {prompt.messages for prompt in prompt_sets.load("word_problems:held_out").prompts}
    rng = random.Random(f"mini-t5 {seed}")
    questions = (TEMPLATES[index % len(TEMPLATES)](rng)[0] for index in range(num_word_problems))
    made = [Prompt(index, (Message("user", question),), None) for index, question in enumerate(questions)]
    return (*(prompt for prompt in made if prompt.messages not in held_out), *prompt_sets.load("instructions:train").prompts)


def tokenizer_on(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with single digits. Plain text and chats get the end token, as an encoder expects."""
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all bytes, so that any text has tokens
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False)
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


def _t5(*, vocabulary: int, heads: int, encoder_layers: int, decoder_layers: int, seed: int) -> T5ForConditionalGeneration:
    """Return a T5 with random weights, gated feed-forward layers, and one matrix for embedding and head."""
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}  # PAD and END are the tokenizer's first
    config = T5Config(
        vocab_size=vocabulary,
        d_model=32 * heads,
        d_kv=32,
        num_heads=heads,
        d_ff=64 * heads,
        num_layers=encoder_layers,
        num_decoder_layers=decoder_layers,
        n_positions=POSITIONS,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        **tokens,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(**tokens)
    return model


def _target(out: Path, work: Path, tokenizer: PreTrainedTokenizerFast, text: Text, sizes: Sizes, seed: int) -> None:
    table = _in_our_tokens(work / "text", tokenizer, text, sizes)
    model = _t5(vocabulary=len(tokenizer), heads=4, encoder_layers=4, decoder_layers=8, seed=seed)
    draft = drafts.trainable(model, "all")  # a target is trained like a draft
    plan = TrainPlan(num_tokens=sizes.target_tokens, batch_tokens=sizes.batch_tokens, learning_rate=3e-3)
    stream = fixed_text(table.rows, plan.batch_tokens, seed)
    with Meter("target", plan.num_tokens) as meter:

        def on_step(position: Position) -> None:
            meter.show(position.num_tokens, f"loss {position.recent_loss():.3f}")

        position = train(draft, stream, text_labels(), plan, work, on_step=on_step)
    drafts.snapshot(draft).save_pretrained(out)
    tokenizer.save_pretrained(out)
    card = {"text_tokens": table.num_tokens, "loss": position.recent_loss(100), "seconds": position.seconds}
    write_atomically(out / CARD, json.dumps({**card, "sizes": asdict(sizes), "seed": seed}, indent=1))


def _in_our_tokens(folder: Path, tokenizer: PreTrainedTokenizerFast, text: Text, sizes: Sizes) -> TextTable:
    """Return the text as rows to train on, with answers cut to the length that a run uses."""
    ids = partial(tokenizer.encode, add_special_tokens=False)
    for index, first in enumerate(range(0, len(text), sizes.batch_rows)):
        rows = text[first : first + sizes.batch_rows]
        if not is_there(folder, index):
            requests = [Request(tuple(ids(prompt + END)), TEXT_TEMPERATURE, 0) for prompt, _ in rows]
            answers = [Answer(torch.tensor(ids(answer)[: sizes.max_new_tokens]), None) for _, answer in rows]
            write_shard(folder, index, requests, answers, seconds=0.0)
    return open_table(folder)


def _draft(out: Path, work: Path, target: Path, prompts: Path, sizes: Sizes, seed: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True)
    start = work / "start"
    model = _t5(vocabulary=len(tokenizer), heads=3, encoder_layers=1, decoder_layers=1, seed=seed + 1)
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    job = Job(
        target=str(target),
        start=str(start),
        trained="all",
        recipe=recipes.recipe("base", 1.0),
        plan=TrainPlan(num_tokens=sizes.draft_tokens, batch_tokens=sizes.batch_tokens, learning_rate=4e-3),
        text_tokens=sizes.draft_text_tokens,
        prompts=(str(prompts),),
        held_out=HELD_OUT,
        max_new_tokens=sizes.max_new_tokens,
        batch_rows=sizes.batch_rows,
        seed=seed,
    )
    distill(job, work / "draft", work / "texts")
    shutil.copytree(work / "draft" / DRAFT, out, dirs_exist_ok=True)
    shutil.copy(work / "draft" / CARD, out)
