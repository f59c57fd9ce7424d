# SPDX-License-Identifier: Apache-2.0
"""The task families of the shipped model: sentences, questions, and what is right.

Every family is a function of a random generator and a length in tokens that returns the
sentences to hide in a document (without those around them), the question, and the rule by
which an answer is right (models/needle-11m/CARD.md).
"""

ADJECTIVES = """ancient bright broken careful crooked curious distant dusty faded famous foreign fragile
frozen generous gentle heavy hidden hollow humble idle jagged lonely modest muddy narrow noisy old patient
polite proud quiet rapid rough rusty silent sturdy tired wild wooden yellowed""".split()
NOUNS = """barrel basket candle carriage doctor engine farmer field forest gardener hammer horse island
kettle ladder lantern letter map merchant mirror mountain needle neighbour painter pilgrim pocket river road
sailor shadow shepherd ship soldier song storm stranger table teacher traveller umbrella valley village
violin wagon wall weaver wheel whistle window winter""".split()
VERBS = """bought built carried chased cleaned counted covered crossed dropped feared followed found guarded
hid ignored invited joined kept left lifted lost measured moved noticed opened owned painted passed planned
praised pushed reached remembered repaired served sold touched visited washed watched""".split()
ADVERBS = """again bravely calmly carefully eagerly early firmly freely gladly kindly late loudly nearly never
often quietly rarely slowly suddenly twice""".split()
PLACES_OF = "above across behind beside beyond inside near past toward under".split()
TIMES = ["after the harvest", "at the end of the day", "because of the cold", "before the morning",
         "during the festival", "for a small reward", "in the long winter", "until the rain stopped",
         "while the bells rang", "without a single word"]

NUMBER_KEYS = ["access code", "alarm code", "archive index", "customs number", "gate code", "locker number",
               "phone code", "room number", "safe combination", "serial number", "ticket number",
               "vault number"]
WORD_KEYS = ["call sign", "code name", "emblem", "password", "secret phrase", "watchword"]
KEYS = NUMBER_KEYS + WORD_KEYS
SITES = """abbey arena bakery bank brewery bridge castle cellar chapel cinema clinic depot dockyard forge fort
foundry garden greenhouse harbour hospital hotel inn library lighthouse market mill museum observatory orchard
palace prison quarry school stable station temple theatre tower warehouse windmill""".split()
TOWN_HEADS = """Bel Cor Dun El Fal Gar Hol Il Kes Lor Mar Mel Nor Os Pel Quin Ros Sal Tar Tol Ul Ver Wen Yar
Zan""".split()
TOWN_TAILS = """bury by dale field ford gate ham low mere ness stead ton vin well wick worth""".split()
COLOURS = """amber azure black blue bronze copper crimson golden green grey ivory jade pink purple red scarlet
silver violet white yellow""".split()
ANIMALS = """badger bear beaver beetle crane eagle falcon fox hare heron lynx mole moth otter owl panther raven
salmon stag swan tiger toad trout viper wolf""".split()
FIRST_NAMES = """Alice Anton Berta Bruno Carl Clara Derek Dora Edith Emil Felix Frida Greta Hugo Irene Jonas
Karla Leon Mara Nils Olga Paul Rita Simon Tessa Ursula Victor Wanda Xenia Yusuf Zelda""".split()
LAST_NAMES = """Birch Boyd Clay Cole Drake Dunn Finch Frost Gale Hale Hart Irwin Judd Kerr Lamb Marsh Moss Nash
Odell Penn Quill Reed Shaw Stone Tate Upton Vale Vance Wade Webb Yates Zorn""".split()


def filler(rng, subject=None):
    """A sentence that matters to nobody, or one about `subject`."""
    adjective, noun = lambda: rng.choice(ADJECTIVES), lambda: rng.choice(NOUNS)
    verb, adverb = lambda: rng.choice(VERBS), lambda: rng.choice(ADVERBS)
    where, when = rng.choice(PLACES_OF), rng.choice(TIMES)
    subject = subject or f"The {adjective()} {noun()}"
    form = rng.random()
    if form < 0.4:
        return f"{subject} {verb()} the {adjective()} {noun()} {where} the {noun()} {when}."
    if form < 0.7:
        return (f"{subject} {adverb()} {verb()} a {noun()} and {verb()} the {adjective()} {noun()} "
                f"{where} the {noun()}.")
    return (f"{subject} {verb()} the {noun()} {when}, and the {noun()} {adverb()} {verb()} the "
            f"{adjective()} {noun()}.")


# ---- facts ---------------------------------------------------------------------------

PARTS = (KEYS, SITES, [head + tail for head in TOWN_HEADS for tail in TOWN_TAILS])


def value(rng, key):
    if key in NUMBER_KEYS:
        return str(rng.randrange(10000, 100000))
    return f"{rng.choice(COLOURS)} {rng.choice(ANIMALS)}"


def new_fact(rng, others):
    """(key, site, town), unlike all others; about half the time it differs from one of them
    in a single part."""
    while True:
        if others and rng.random() < 0.5:
            fact = list(rng.choice(others))
            part = rng.randrange(3)
            fact[part] = rng.choice(PARTS[part])
            fact = tuple(fact)
        else:
            fact = tuple(rng.choice(part) for part in PARTS)
        if fact not in others:
            return fact


def draw_facts(rng, count, apart=0):
    """`count` facts with values; the first `apart` are drawn on their own."""
    facts = []
    for i in range(count):
        facts.append(new_fact(rng, facts if i >= apart else []))
    if len(set(facts)) < count:
        return draw_facts(rng, count, apart)
    return [(fact, value(rng, fact[0])) for fact in facts]


def named(fact):
    key, site, town = fact
    return f"the {key} of the {site} in {town}"


def forms(fact, found):
    """The wordings of a fact that are right."""
    key, site, town = fact
    return [f"the {key} of the {site} in {town} is {found}", f"in {town} the {key} of the {site} is {found}",
            f"the {site} in {town} has the {key} {found}", f"it is {found}, the {key} of the {site} in {town}"]


def state(facts, article="The"):
    return [f"{article} {key} of the {site} in {town} is {found}." for (key, site, town), found in facts]


def sentence(text):
    return text[0].upper() + text[1:] + "."


def question(task, names):
    *first, last = names
    several = f"{', '.join(first)} and {last}"
    return {"single": f"What is {last}?", "mk": f"What is {last}?", "mq": f"What are {several}?",
            "ml": f"List {several}.", "rpt": f"Write a report with {several}.",
            "vt": f"What is the value of {last}?", "rep": f"Repeat the sentence about {last}.",
            "mv": f"What is every {last.removeprefix('the ')}?"}[task]


def some_facts(length):
    return min(40, max(5, length // 48 - 1))


def single(rng, length):
    (fact, found), = facts = draw_facts(rng, 1)
    return state(facts), question("single", [named(fact)]), {"any": [sentence(f) for f in forms(fact, found)]}


def mk(rng, length):
    facts = draw_facts(rng, max(4, length // 32 - 2))
    fact, found = facts[0]
    return state(facts), question("mk", [named(fact)]), {"any": [sentence(f) for f in forms(fact, found)]}


def mq(rng, length):
    facts = draw_facts(rng, some_facts(length), apart=3)
    names = [named(fact) for fact, _ in facts[:3]]
    return state(facts), question("mq", names), {"all": [forms(*fact) for fact in facts[:3]]}


def ml(rng, length):
    facts = draw_facts(rng, some_facts(length), apart=4)
    names = [named(fact) for fact, _ in facts[:4]]
    return (state(facts), question("ml", names),
            {"prefix": "The list is ", "values": [found for _, found in facts[:4]]})


def draw_values(rng, fact, count):
    found = set()
    while len(found) < count():
        found.add(value(rng, fact[0]))
    found = sorted(found)
    rng.shuffle(found)
    return found


def mv(rng, length):
    short = length < 1024
    names = [fact for fact, _ in draw_facts(rng, (3 if short else 9) + (4 if short else 10))]
    groups, rest = (names[:3], names[3:]) if short else (names[:9], names[9:])
    sentences = state([(fact, value(rng, fact[0])) for fact in rest])
    for i, fact in enumerate(groups):
        found = draw_values(rng, fact, lambda: 3 if i == 0 else rng.choice([2, 3, 3, 4]))
        sentences += state([(fact, v) for v in found], "One")
        if i == 0:
            accept = {"prefix": "They are ", "values": found}
    return sentences, question("mv", [named(groups[0])]), accept


def draw_chains(rng, count, first):
    """Variables and the number at the end; the first chain has `first` variables."""
    def fresh():
        while True:
            word = (rng.choice("jkptvz") + rng.choice("aeou") + rng.choice("dlmnrs") + rng.choice("iou"))
            if word not in used:
                used.add(word)
                return word
    used, chains = set(), []
    for i in range(count):
        links = [fresh() for _ in range(first if i == 0 else rng.choice([1, 2, 3, 3, 4, 4]))]
        chains.append(links + [str(rng.randrange(10000, 100000))])
    return chains


def links(chains):
    return [f"Let {a} = {b}." for chain in chains for a, b in zip(chain, chain[1:])]


def chain_forms(chain):
    return [f"The chain is {' = '.join(chain)}.", f"It is {' = '.join(reversed(chain))}."]


def vt(rng, length):
    chains = draw_chains(rng, 6 if length < 1024 else 13, first=4)
    return links(chains), question("vt", chains[0][:1]), {"any": chain_forms(chains[0])}


def draw_people(rng, count):
    people = set()
    while len(people) < count:
        people.add(f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}")
    people = sorted(people)
    rng.shuffle(people)
    return people


def repeat_forms(wanted):
    return [f"The sentence is: {wanted}", f"It says: {wanted}", f"Here it is once more: {wanted}"]


def rep(rng, length):
    people = draw_people(rng, 6 if length < 1024 else 13)
    sentences = [filler(rng, person) for person in people]
    return sentences, question("rep", people[:1]), {"any": repeat_forms(sentences[0])}


def rpt(rng, length):
    facts = draw_facts(rng, some_facts(length), apart=2)
    names = [named(fact) for fact, _ in facts[:2]]
    return state(facts), question("rpt", names), {"all": [forms(*fact) for fact in facts[:2]]}


TASKS = {task.__name__: task for task in (single, mk, mv, mq, ml, vt, rep, rpt)}
