"""Write word_problems.jsonl: seeded multi-step arithmetic problems with their answers.

    python bench/prompts/make_word_problems.py

Every template draws its numbers so that each step gives a positive whole number, and computes the answer too.
Its question is in word_problems.toml.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path

SEED = 20241010
NUM_TRAIN = 96
NUM_HELD_OUT = 64

_NAMES = (
    *("Amara", "Bruno", "Chen", "Dalia", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jonas", "Kavya", "Lena", "Mateo"),
    *("Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Samir", "Tova", "Umar", "Vera", "Wanda", "Ximena", "Yusuf"),
    "Zofia",
)
_GOODS = ("pencils", "stickers", "marbles", "buttons", "postcards", "beads", "seashells", "stamps", "badges", "ribbons")
_FOODS = ("apples", "pears", "muffins", "lemons", "dumplings", "pancakes", "figs", "bagels", "plums", "tarts")
_PLACES = ("library", "bakery", "school", "museum", "garden centre", "swimming pool", "theatre", "workshop")

Problem = tuple[str, int]  # question, answer
TEXTS = tomllib.loads(Path(__file__).with_name("word_problems.toml").read_text())  # template -> question with {names}


def _drawn(rng: random.Random, *ranges: tuple[int, int]) -> list[int]:
    """Draw a number from each range, both ends included. The order of draws decides the prompts, whose hash records store."""
    return [rng.randint(least, most) for least, most in ranges]


def _shopping(rng: random.Random) -> Problem:
    name, (first, second) = rng.choice(_NAMES), rng.sample(_GOODS, 2)
    num_first, num_second, price_first, price_second = _drawn(rng, (3, 9), (2, 8), (2, 6), (3, 9))
    cost = num_first * price_first + num_second * price_second
    note = (cost // 20 + 1) * 20  # the next multiple of $20, so that there is always change
    question = TEXTS["shopping"].format(
        name=name,
        num_first=num_first,
        first=first,
        price_first=price_first,
        num_second=num_second,
        second=second,
        price_second=price_second,
        note=note,
    )
    return question, note - cost


def _sharing(rng: random.Random) -> Problem:
    name, food = rng.choice(_NAMES), rng.choice(_FOODS)
    num_friends, share, eaten, kept = _drawn(rng, (3, 9), (2, 9), (2, 8), (1, 6))
    total = num_friends * share + eaten + kept
    question = TEXTS["sharing"].format(name=name, total=total, food=food, eaten=eaten, kept=kept, num_friends=num_friends)
    return question, share


def _savings(rng: random.Random) -> Problem:
    name = rng.choice(_NAMES)
    weekly, spent, num_weeks, start = _drawn(rng, (12, 30), (2, 9), (4, 12), (10, 60))
    question = TEXTS["savings"].format(name=name, start=start, weekly=weekly, spent=spent, num_weeks=num_weeks)
    return question, start + num_weeks * (weekly - spent)


def _journey(rng: random.Random) -> Problem:
    name, place = rng.choice(_NAMES), rng.choice(_PLACES)
    fast, slow, hours_fast, hours_slow = _drawn(rng, (12, 20), (4, 9), (2, 4), (1, 3))
    question = TEXTS["journey"].format(
        place=place,
        name=name,
        hours_fast=hours_fast,
        fast=fast,
        hours_slow=hours_slow,
        hours_word="hour" if hours_slow == 1 else "hours",
        slow=slow,
    )
    return question, fast * hours_fast + slow * hours_slow


def _harvest(rng: random.Random) -> Problem:
    name, crop = rng.choice(_NAMES), rng.choice(("carrots", "tomatoes", "pumpkins", "beans", "cabbages", "peppers"))
    rows, each, crates, price = _drawn(rng, (4, 12), (6, 15), (3, 8), (4, 11))
    per_crate = rng.randint(2, max(2, rows * each // crates))
    left = rows * each - crates * per_crate
    if left <= 0:  # nothing would be left over: draw again
        return _harvest(rng)
    question = TEXTS["harvest"].format(
        name=name, rows=rows, crop=crop, each=each, crates=crates, per_crate=per_crate, price=price
    )
    return question, crates * price + left


def _reading(rng: random.Random) -> Problem:
    name = rng.choice(_NAMES)
    per_day, num_days, rest_days = _drawn(rng, (8, 20), (4, 9), (3, 8))
    weekend = per_day + rng.randint(4, 15)
    pages = per_day * num_days + weekend * rest_days
    question = TEXTS["reading"].format(name=name, pages=pages, num_days=num_days, per_day=per_day, weekend=weekend)
    return question, num_days + rest_days


def _ages(rng: random.Random) -> Problem:
    young, old = rng.sample(_NAMES, 2)
    age, factor, years = _drawn(rng, (4, 11), (3, 6), (3, 12))
    question = TEXTS["ages"].format(old=old, factor=factor, young=young, age=age, years=years)
    return question, age * factor + age + 2 * years


def _collection(rng: random.Random) -> Problem:
    (first, second, third), goods = rng.sample(_NAMES, 3), rng.choice(_GOODS)
    half, more, lost = _drawn(rng, (6, 24), (5, 20), (2, 5))
    question = TEXTS["collection"].format(
        first=first, double=2 * half, goods=goods, second=second, third=third, more=more, lost=lost
    )
    return question, 2 * half + half + half + more - lost


def _seating(rng: random.Random) -> Problem:
    place = rng.choice(_PLACES)
    num_rows, seats, empty, ticket = _drawn(rng, (6, 15), (8, 20), (5, 25), (3, 12))
    question = TEXTS["seating"].format(place=place, num_rows=num_rows, seats=seats, empty=empty, ticket=ticket)
    return question, (num_rows * seats - empty) * ticket


def _painting(rng: random.Random) -> Problem:
    name = rng.choice(_NAMES)
    width, height, num_walls, window = _drawn(rng, (4, 9), (2, 4), (2, 4), (1, 5))
    question = TEXTS["painting"].format(
        name=name, num_walls=num_walls, width=width, height=height, window=window, metres="metre" if window == 1 else "metres"
    )
    return question, num_walls * width * height - window


def _recipe(rng: random.Random) -> Problem:
    name, food = rng.choice(_NAMES), rng.choice(("muffins", "pancakes", "bagels", "tarts", "scones", "waffles"))
    batch, batches, grams = rng.choice((6, 8, 10, 12)), rng.randint(3, 7), 20 * rng.randint(6, 15)
    stock = grams * rng.randint(1, batches - 1)
    question = TEXTS["recipe"].format(batch=batch, food=food, grams=grams, name=name, needed=batch * batches, stock=stock)
    return question, grams * batches - stock


def _discount(rng: random.Random) -> Problem:
    name, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    price, percent, num = 20 * rng.randint(2, 6), rng.choice((5, 10, 15, 20, 25)), rng.randint(2, 5)
    postage = rng.randint(3, 9)
    question = TEXTS["discount"].format(goods=goods, price=price, percent=percent, name=name, num=num, postage=postage)
    return question, num * price * (100 - percent) // 100 + postage


def _tank(rng: random.Random) -> Problem:
    place = rng.choice(_PLACES)
    inflow, minutes, leak, start = _drawn(rng, (8, 20), (10, 30), (1, 5), (20, 90))
    question = TEXTS["tank"].format(
        place=place, start=start, inflow=inflow, leak=leak, litres="litre" if leak == 1 else "litres", minutes=minutes
    )
    return question, start + (inflow - leak) * minutes


def _wages(rng: random.Random) -> Problem:
    name, place = rng.choice(_NAMES), rng.choice(_PLACES)
    rate, hours, extra = 2 * rng.randint(5, 12), rng.randint(20, 38), rng.randint(2, 8)
    question = TEXTS["wages"].format(place=place, name=name, rate=rate, hours=hours, extra=extra)
    return question, rate * hours + rate * 3 // 2 * extra


def _fence(rng: random.Random) -> Problem:
    name = rng.choice(_NAMES)
    length, width, gate, price = _drawn(rng, (10, 30), (5, 15), (1, 4), (3, 9))
    question = TEXTS["fence"].format(
        name=name, length=length, width=width, gate=gate, metres="metre" if gate == 1 else "metres", price=price
    )
    return question, (2 * (length + width) - gate) * price


def _boxes(rng: random.Random) -> Problem:
    name, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    num_large, num_small, in_small, factor = _drawn(rng, (3, 8), (4, 12), (5, 12), (2, 4))
    in_large = in_small * factor
    question = TEXTS["boxes"].format(
        name=name, goods=goods, num_large=num_large, in_large=in_large, num_small=num_small, in_small=in_small
    )
    return question, num_large * in_large // in_small + num_small


TEMPLATES: tuple[Callable[[random.Random], Problem], ...] = (
    *(_shopping, _sharing, _savings, _journey, _harvest, _reading, _ages, _collection),
    *(_seating, _painting, _recipe, _discount, _tank, _wages, _fence, _boxes),
)


def problems(seed: int = SEED) -> list[dict[str, str | int]]:
    """Return the rows of the file. The templates take turns, so that both splits hold the same mixture."""
    rng = random.Random(seed)
    rows: list[dict[str, str | int]] = []
    for index in range(NUM_TRAIN + NUM_HELD_OUT):
        question, answer = TEMPLATES[index % len(TEMPLATES)](rng)
        rows.append({"prompt": question, "answer": answer, "split": "train" if index < NUM_TRAIN else "held_out"})
    return rows


def main() -> None:
    Path(__file__).with_name("word_problems.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in problems()))


if __name__ == "__main__":
    main()
