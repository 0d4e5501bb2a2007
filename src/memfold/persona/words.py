"""The word lists of the persona dialogues: attributes, their values and how people speak of them.

Every attribute has statements that tell a value, corrections that replace one, questions that ask for
it and the one sentence that answers. ``{v}`` stands for the value. Values are single words, so that
an answer is right or wrong and nothing in between.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing a person can tell about themselves."""

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    corrections: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str


def _attribute(
    name: str, values: str, statements: list[str], corrections: list[str], questions: list[str], answer: str
) -> Attribute:
    return Attribute(name, tuple(values.split()), tuple(statements), tuple(corrections), tuple(questions), answer)


ATTRIBUTES: tuple[Attribute, ...] = (
    _attribute(
        "city",
        "Lisbon Oslo Madrid Vienna Prague Dublin Athens Warsaw Berlin Paris Rome London Tokyo Kyoto Seoul Hanoi "
        "Delhi Mumbai Cairo Lagos Nairobi Lima Quito Bogota Boston Denver Austin Seattle Chicago Toronto Sydney "
        "Perth Geneva Zurich",
        ["I live in {v}.", "My home is in {v}.", "I have a flat in {v}.", "The city I live in is {v}."],
        ["I moved to {v}.", "My home is in {v} now.", "The city I live in is {v} now."],
        ["Where do I live?", "Which city do I live in?", "What city is my home in?"],
        "You live in {v}.",
    ),
    _attribute(
        "job",
        "nurse teacher baker plumber pilot lawyer farmer dentist florist tailor painter welder chemist editor "
        "banker barber butcher carpenter surgeon sailor librarian architect mechanic translator electrician "
        "gardener journalist waiter cashier firefighter referee jeweler",
        ["I work as a {v}.", "My job is {v}.", "I earn my living as a {v}.", "The job I do is {v}."],
        ["I now work as a {v}.", "My job is {v} now.", "My new job is {v}."],
        ["What is my job?", "What do I work as?", "Which job do I do?"],
        "You work as a {v}.",
    ),
    _attribute(
        "pet",
        "dog cat rabbit hamster parrot turtle ferret gecko snake goldfish canary lizard hedgehog pony goat "
        "chicken duck donkey llama alpaca pigeon mouse rat spider frog newt iguana chinchilla budgie cockatoo "
        "poodle kitten",
        ["I have a pet {v}.", "My pet is a {v}.", "At home I keep a {v}.", "The pet I have is a {v}."],
        ["My pet is now a {v}.", "My new pet is a {v}.", "I keep a {v} now."],
        ["What pet do I have?", "Which pet do I keep?", "What is my pet?"],
        "Your pet is a {v}.",
    ),
    _attribute(
        "color",
        "red blue green yellow purple teal orange pink black white gray brown crimson scarlet maroon navy azure "
        "cyan magenta violet indigo turquoise beige ivory gold silver bronze coral lavender emerald khaki mauve",
        [
            "My favorite color is {v}.",
            "The color I like best is {v}.",
            "I love the color {v}.",
            "I paint everything {v}.",
        ],
        ["My favorite color is {v} now.", "Now I like the color {v} best.", "My new favorite color is {v}."],
        ["What is my favorite color?", "Which color do I like best?", "What color do I love?"],
        "Your favorite color is {v}.",
    ),
    _attribute(
        "food",
        "pizza pasta sushi tacos curry ramen paella risotto lasagna burger falafel hummus kebab dumplings "
        "pancakes waffles omelette goulash chili stew gnocchi ravioli tofu lentils noodles burrito quiche "
        "fondue moussaka couscous porridge salad",
        [
            "My favorite food is {v}.",
            "The food I like best is {v}.",
            "I love to eat {v}.",
            "For dinner I always want {v}.",
        ],
        ["My favorite food is {v} now.", "Now I like to eat {v} best.", "My new favorite food is {v}."],
        ["What is my favorite food?", "Which food do I like best?", "What do I love to eat?"],
        "Your favorite food is {v}.",
    ),
    _attribute(
        "drink",
        "coffee tea water milk cocoa lemonade cider juice espresso latte cola soda smoothie milkshake beer wine "
        "sherry mead kefir lassi matcha chai kombucha punch tonic ginger rum whisky gin vodka brandy champagne",
        [
            "My favorite drink is {v}.",
            "The drink I like best is {v}.",
            "I love to drink {v}.",
            "I always order {v} at the bar.",
        ],
        ["My favorite drink is {v} now.", "Now I like to drink {v} best.", "My new favorite drink is {v}."],
        ["What is my favorite drink?", "Which drink do I like best?", "What do I love to drink?"],
        "Your favorite drink is {v}.",
    ),
    _attribute(
        "sport",
        "tennis soccer hockey rugby golf rowing sailing skiing surfing boxing judo karate fencing archery "
        "badminton volleyball basketball baseball cricket swimming running cycling climbing skating curling "
        "squash handball polo wrestling gymnastics bowling diving",
        [
            "My sport is {v}.",
            "The sport I do is {v}.",
            "I train {v} every week.",
            "I am in a club for {v}.",
        ],
        ["My sport is {v} now.", "The sport I do now is {v}.", "My new sport is {v}."],
        ["What is my sport?", "Which sport do I do?", "What sport do I train?"],
        "Your sport is {v}.",
    ),
    _attribute(
        "instrument",
        "piano guitar violin cello flute clarinet oboe bassoon trumpet trombone tuba harp drums banjo mandolin "
        "ukulele accordion saxophone organ harmonica recorder viola lute sitar xylophone marimba bagpipes "
        "bongos zither horn keyboard triangle",
        [
            "I play the {v}.",
            "My instrument is the {v}.",
            "I take lessons on the {v}.",
            "The instrument I play is the {v}.",
        ],
        ["I now play the {v}.", "My instrument is the {v} now.", "My new instrument is the {v}."],
        ["What instrument do I play?", "Which instrument is mine?", "What is my instrument?"],
        "You play the {v}.",
    ),
    _attribute(
        "hobby",
        "knitting pottery chess gardening hiking fishing sewing origami photography juggling calligraphy "
        "baking dancing drawing reading camping astronomy woodworking embroidery birdwatching magic puzzles "
        "painting singing yoga writing collecting coding brewing quilting sculpting foraging",
        [
            "My hobby is {v}.",
            "The hobby I have is {v}.",
            "I spend my weekends on {v}.",
            "In my free time I enjoy {v}.",
        ],
        ["My hobby is {v} now.", "The hobby I have now is {v}.", "My new hobby is {v}."],
        ["What is my hobby?", "Which hobby do I have?", "What do I spend my weekends on?"],
        "Your hobby is {v}.",
    ),
    _attribute(
        "language",
        "Spanish French German Italian Greek Polish Czech Danish Swedish Finnish Dutch Russian Turkish Arabic "
        "Hebrew Hindi Urdu Bengali Tamil Thai Korean Japanese Mandarin Swahili Zulu Latin Welsh Irish Basque "
        "Catalan Hungarian Norwegian",
        [
            "I am learning {v}.",
            "The language I study is {v}.",
            "I take classes in {v}.",
            "I want to speak {v}.",
        ],
        ["I am learning {v} now.", "The language I study now is {v}.", "My new language is {v}."],
        ["What language am I learning?", "Which language do I study?", "What do I want to speak?"],
        "You are learning {v}.",
    ),
    _attribute(
        "birthplace",
        "Portugal Spain France Italy Greece Norway Sweden Finland Denmark Poland Austria Hungary Croatia Serbia "
        "Bulgaria Romania Turkey Egypt Morocco Kenya Ghana Nigeria India Nepal China Japan Vietnam Mexico Peru "
        "Chile Brazil Canada",
        [
            "I was born in {v}.",
            "My country of birth is {v}.",
            "I grew up in {v}.",
            "The country I come from is {v}.",
        ],
        [
            "I was really born in {v}.",
            "My country of birth is {v} in fact.",
            "In fact the country I come from is {v}.",
        ],
        ["Where was I born?", "Which country do I come from?", "What is my country of birth?"],
        "You were born in {v}.",
    ),
    _attribute(
        "fruit",
        "apple banana cherry grape mango papaya peach pear plum kiwi lemon lime melon apricot fig date guava "
        "lychee nectarine pineapple pomegranate raspberry strawberry blueberry blackberry cranberry coconut "
        "avocado tangerine grapefruit quince persimmon",
        [
            "My favorite fruit is the {v}.",
            "The fruit I like best is the {v}.",
            "I buy one {v} every day.",
            "The best fruit for me is the {v}.",
        ],
        [
            "My favorite fruit is the {v} now.",
            "Now the fruit I like best is the {v}.",
            "My new favorite fruit is the {v}.",
        ],
        ["What is my favorite fruit?", "Which fruit do I like best?", "What fruit do I buy?"],
        "Your favorite fruit is the {v}.",
    ),
    _attribute(
        "flower",
        "rose tulip lily daisy orchid sunflower peony iris poppy lotus jasmine daffodil marigold begonia camellia "
        "carnation dahlia geranium hibiscus hyacinth magnolia pansy petunia primrose snowdrop zinnia azalea "
        "bluebell buttercup crocus freesia gardenia",
        [
            "My favorite flower is the {v}.",
            "The flower I like best is the {v}.",
            "In my garden grows a {v}.",
            "The flower in my garden is a {v}.",
        ],
        [
            "My favorite flower is the {v} now.",
            "Now the flower I like best is the {v}.",
            "My new favorite flower is the {v}.",
        ],
        ["What is my favorite flower?", "Which flower do I like best?", "What flower grows in my garden?"],
        "Your favorite flower is the {v}.",
    ),
    _attribute(
        "friend",
        "Alice Bruno Clara David Elena Felix Greta Henry Irene Jonas Karen Lucas Maria Nadia Oscar Paula Quentin "
        "Rosa Simon Tessa Ulrich Vera Walter Xenia Yusuf Zoe Amir Bianca Carlos Dora Ethan Fiona",
        [
            "My best friend is {v}.",
            "The name of my best friend is {v}.",
            "I share everything with my friend {v}.",
            "My best friend is called {v}.",
        ],
        ["My best friend is {v} now.", "My new best friend is {v}.", "My best friend is now called {v}."],
        ["Who is my best friend?", "What is the name of my best friend?", "What is my best friend called?"],
        "Your best friend is {v}.",
    ),
    _attribute(
        "vehicle",
        "car bicycle scooter motorbike van truck tram bus train taxi skateboard tractor minivan limousine jeep "
        "convertible moped tricycle unicycle rickshaw ferry canoe kayak yacht helicopter balloon hovercraft "
        "sled wagon carriage camper rollerskates",
        [
            "I get to work by {v}.",
            "My way to work is by {v}.",
            "Every morning I travel by {v}.",
            "I always travel by {v}.",
        ],
        ["I get to work by {v} now.", "Now I travel by {v}.", "My new way to work is by {v}."],
        ["How do I get to work?", "How do I travel?", "What is my way to work?"],
        "You travel by {v}.",
    ),
    _attribute(
        "subject",
        "history physics biology chemistry geography algebra geometry music art drama economics philosophy "
        "psychology sociology literature grammar poetry statistics calculus botany zoology geology ecology "
        "politics law medicine engineering theology logic anatomy linguistics archaeology",
        [
            "At school I liked {v} best.",
            "My best subject was {v}.",
            "The subject I studied is {v}.",
            "I have a degree in {v}.",
        ],
        ["My best subject is really {v}.", "In fact the subject I studied is {v}.", "In fact my degree is in {v}."],
        ["What was my best subject?", "Which subject did I study?", "What is my degree in?"],
        "Your subject is {v}.",
    ),
)

OPENERS: tuple[str, ...] = (
    "",
    "Hello! ",
    "By the way, ",
    "You should know this: ",
    "Something about me: ",
    "Well, ",
    "I want to tell you that ",
    "Please remember: ",
)
CLOSERS: tuple[str, ...] = ("", " Keep it in mind.", " That is how it is.", " Good to know, I think.", " And you?")
CORRECTION_OPENERS: tuple[str, ...] = ("", "News: ", "This has changed: ", "Correction: ", "Please update this: ")
QUESTION_OPENERS: tuple[str, ...] = ("", "Tell me: ", "Do you remember? ", "Quick question: ", "I forgot. ")
ACKNOWLEDGEMENTS: tuple[str, ...] = (
    "Noted.",
    "Okay.",
    "Good to know.",
    "I will remember that.",
    "Thanks for telling me.",
    "Got it.",
)
UNKNOWN_ANSWER = "You have not told me that."

FILLERS: tuple[str, ...] = (
    "The weather was {adjective} {when}.",
    "I saw a {adjective} film about {topic} {when}.",
    "There was a {adjective} story about {topic} in the news.",
    "People talk a lot about {topic} these days.",
    "The meeting {when} was rather {adjective}.",
    "My neighbor told me a {adjective} joke {when}.",
    "The shop on the corner was {adjective} {when}.",
    "I slept in a {adjective} way and woke up early.",
    "We talked about {topic} for hours {when}.",
    "It takes a {adjective} mind to understand {topic}.",
    "The street outside is {adjective} again.",
    "Some say that {topic} will be {adjective} next year.",
    "I lost my keys {when}, which was {adjective}.",
    "A {adjective} book about {topic} is on the table.",
    "The phone rang twice {when}, but nobody spoke.",
    "I am not sure what to think about {topic}.",
)
FILLER_REPLIES: tuple[str, ...] = (
    "That sounds {adjective}.",
    "I see.",
    "How {adjective}!",
    "I know little about {topic}.",
    "Tell me more about {topic}.",
    "I hope it gets better.",
    "Interesting.",
)
ADJECTIVES: tuple[str, ...] = tuple(
    (
        "strange lovely boring quiet loud funny sad bright dark cold warm slow quick gentle wild calm busy empty "
        "crowded pleasant awful splendid curious ordinary remarkable"
    ).split()
)
TOPICS: tuple[str, ...] = tuple(
    (
        "space robots money traffic history weather elections holidays cinema fashion trains oceans volcanoes "
        "dinosaurs bridges taxes neighbors concerts museums gardens dreams computers letters castles rivers"
    ).split()
)
WHENS: tuple[str, ...] = (
    "today",
    "yesterday",
    "last night",
    "this morning",
    "last week",
    "on Monday",
    "on Friday",
    "an hour ago",
)
