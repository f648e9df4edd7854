"""Write word_problems.jsonl: seeded multi-step arithmetic problems with their answers.

    python bench/prompts/make_word_problems.py

Every template draws its numbers so that each step gives a positive whole number, and computes the answer too.
"""

from __future__ import annotations

import json
import random
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


def _drawn(rng: random.Random, *ranges: tuple[int, int]) -> list[int]:
    """Draw a number from each range, both ends included. The order of draws decides the prompts, whose hash records store."""
    return [rng.randint(least, most) for least, most in ranges]


def _shopping(rng: random.Random) -> Problem:
    name, (first, second) = rng.choice(_NAMES), rng.sample(_GOODS, 2)
    num_first, num_second, price_first, price_second = _drawn(rng, (3, 9), (2, 8), (2, 6), (3, 9))
    cost = num_first * price_first + num_second * price_second
    note = (cost // 20 + 1) * 20  # the next multiple of $20, so that there is always change
    question = (
        f"{name} buys {num_first} packs of {first} at ${price_first} each and {num_second} packs of {second} at "
        f"${price_second} each, and pays with ${note}. How many dollars of change does {name} get?"
    )
    return question, note - cost


def _sharing(rng: random.Random) -> Problem:
    name, food = rng.choice(_NAMES), rng.choice(_FOODS)
    num_friends, share, eaten, kept = _drawn(rng, (3, 9), (2, 9), (2, 8), (1, 6))
    total = num_friends * share + eaten + kept
    question = (
        f"{name} has {total} {food}. After eating {eaten} and putting {kept} aside, {name} divides the rest equally "
        f"among {num_friends} friends. How many {food} does each friend get?"
    )
    return question, share


def _savings(rng: random.Random) -> Problem:
    name = rng.choice(_NAMES)
    weekly, spent, num_weeks, start = _drawn(rng, (12, 30), (2, 9), (4, 12), (10, 60))
    question = (
        f"{name} starts with ${start} in a jar. Every week {name} earns ${weekly} by walking dogs and spends ${spent} "
        f"on the bus; the rest goes into the jar. How much money is in the jar after {num_weeks} weeks?"
    )
    return question, start + num_weeks * (weekly - spent)


def _journey(rng: random.Random) -> Problem:
    name, place = rng.choice(_NAMES), rng.choice(_PLACES)
    fast, slow, hours_fast, hours_slow = _drawn(rng, (12, 20), (4, 9), (2, 4), (1, 3))
    question = (
        f"On the way to a {place} in another town, {name} cycles for {hours_fast} hours at {fast} kilometres an hour "
        f"and then, after a flat tyre, walks for {hours_slow} {'hour' if hours_slow == 1 else 'hours'} at {slow} "
        f"kilometres an hour. How many kilometres does {name} cover in all?"
    )
    return question, fast * hours_fast + slow * hours_slow


def _harvest(rng: random.Random) -> Problem:
    name, crop = rng.choice(_NAMES), rng.choice(("carrots", "tomatoes", "pumpkins", "beans", "cabbages", "peppers"))
    rows, each, crates, price = _drawn(rng, (4, 12), (6, 15), (3, 8), (4, 11))
    per_crate = rng.randint(2, max(2, rows * each // crates))
    left = rows * each - crates * per_crate
    if left <= 0:  # nothing would be left over: draw again
        return _harvest(rng)
    question = (
        f"{name} grows {rows} rows of {crop} with {each} in a row. {crates} crates of {per_crate} are packed for the market "
        f"and sold at ${price} a crate; the {crop} that are left over are sold at $1 each. How many dollars does {name} take?"
    )
    return question, crates * price + left


def _reading(rng: random.Random) -> Problem:
    name = rng.choice(_NAMES)
    per_day, num_days, rest_days = _drawn(rng, (8, 20), (4, 9), (3, 8))
    weekend = per_day + rng.randint(4, 15)
    pages = per_day * num_days + weekend * rest_days
    question = (
        f"{name} reads a book of {pages} pages. For the first {num_days} days {name} reads {per_day} pages a day, and "
        f"from then on {weekend} pages a day. How many days does the whole book take?"
    )
    return question, num_days + rest_days


def _ages(rng: random.Random) -> Problem:
    young, old = rng.sample(_NAMES, 2)
    age, factor, years = _drawn(rng, (4, 11), (3, 6), (3, 12))
    question = (
        f"{old} is {factor} times as old as {young}, who is {age}. In {years} years, how old will the two of them be together?"
    )
    return question, age * factor + age + 2 * years


def _collection(rng: random.Random) -> Problem:
    (first, second, third), goods = rng.sample(_NAMES, 3), rng.choice(_GOODS)
    half, more, lost = _drawn(rng, (6, 24), (5, 20), (2, 5))
    question = (
        f"{first} owns {2 * half} {goods}. {second} owns half as many, and {third} owns {more} more than {second} but "
        f"then loses {lost}. How many {goods} do the three own together now?"
    )
    return question, 2 * half + half + half + more - lost


def _seating(rng: random.Random) -> Problem:
    place = rng.choice(_PLACES)
    num_rows, seats, empty, ticket = _drawn(rng, (6, 15), (8, 20), (5, 25), (3, 12))
    question = (
        f"For a concert the {place} puts up {num_rows} rows of {seats} chairs. {empty} chairs stay empty and everybody "
        f"else has paid ${ticket}. How many dollars do the tickets bring in?"
    )
    return question, (num_rows * seats - empty) * ticket


def _painting(rng: random.Random) -> Problem:
    name = rng.choice(_NAMES)
    width, height, num_walls, window = _drawn(rng, (4, 9), (2, 4), (2, 4), (1, 5))
    question = (
        f"{name} paints {num_walls} walls, each {width} metres wide and {height} metres high. One of them has a window "
        f"of {window} square {'metre' if window == 1 else 'metres'}, which stays as it is. "
        f"How many square metres does {name} paint?"
    )
    return question, num_walls * width * height - window


def _recipe(rng: random.Random) -> Problem:
    name, food = rng.choice(_NAMES), rng.choice(("muffins", "pancakes", "bagels", "tarts", "scones", "waffles"))
    batch, batches, grams = rng.choice((6, 8, 10, 12)), rng.randint(3, 7), 20 * rng.randint(6, 15)
    stock = grams * rng.randint(1, batches - 1)
    question = (
        f"A recipe for {batch} {food} takes {grams} grams of flour. {name} needs {batch * batches} {food} and already "
        f"has {stock} grams of flour. How many more grams of flour must {name} buy?"
    )
    return question, grams * batches - stock


def _discount(rng: random.Random) -> Problem:
    name, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    price, percent, num = 20 * rng.randint(2, 6), rng.choice((5, 10, 15, 20, 25)), rng.randint(2, 5)
    postage = rng.randint(3, 9)
    question = (
        f"A box of {goods} costs ${price}. This week every box is {percent}% cheaper. {name} orders {num} boxes and "
        f"pays ${postage} for postage. What is the total in dollars?"
    )
    return question, num * price * (100 - percent) // 100 + postage


def _tank(rng: random.Random) -> Problem:
    place = rng.choice(_PLACES)
    inflow, minutes, leak, start = _drawn(rng, (8, 20), (10, 30), (1, 5), (20, 90))
    question = (
        f"The tank behind the {place} holds {start} litres. A hose adds {inflow} litres a minute while a leak loses "
        f"{leak} {'litre' if leak == 1 else 'litres'} a minute. How many litres are in the tank after {minutes} minutes?"
    )
    return question, start + (inflow - leak) * minutes


def _wages(rng: random.Random) -> Problem:
    name, place = rng.choice(_NAMES), rng.choice(_PLACES)
    rate, hours, extra = 2 * rng.randint(5, 12), rng.randint(20, 38), rng.randint(2, 8)
    question = (
        f"At the {place}, {name} earns ${rate} an hour, and half as much again for overtime. Last week {name} worked "
        f"{hours} normal hours and {extra} hours of overtime. How many dollars did {name} earn?"
    )
    return question, rate * hours + rate * 3 // 2 * extra


def _fence(rng: random.Random) -> Problem:
    name = rng.choice(_NAMES)
    length, width, gate, price = _drawn(rng, (10, 30), (5, 15), (1, 4), (3, 9))
    question = (
        f"{name} puts a fence around a rectangular meadow {length} metres long and {width} metres wide, leaving a gap "
        f"of {gate} {'metre' if gate == 1 else 'metres'} for a gate. Fence costs ${price} a metre. "
        f"How many dollars does the fence cost?"
    )
    return question, (2 * (length + width) - gate) * price


def _boxes(rng: random.Random) -> Problem:
    name, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    num_large, num_small, in_small, factor = _drawn(rng, (3, 8), (4, 12), (5, 12), (2, 4))
    in_large = in_small * factor
    question = (
        f"{name} packs {goods} into {num_large} large boxes of {in_large} and {num_small} small boxes of {in_small}. "
        f"How many small boxes alone would have been enough for all the {goods}?"
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
