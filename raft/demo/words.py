"""The word lists of the micro-world: plain English, so that a sentence-embedding model knows the words."""


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CATEGORIES: dict[str, tuple[str, ...]] = {
    "animals": _split("cat dog horse cow sheep goat pig rabbit mouse lion tiger bear wolf fox monkey camel"),
    "foods": _split("apple bread cheese rice soup cake butter honey onion potato banana carrot pepper salad pie egg"),
    "tools": _split(
        "hammer saw drill wrench shovel rake axe knife brush ladder needle scissors pliers chisel rope nail"
    ),
    "clothes": _split("shirt coat hat sock shoe glove scarf dress belt boot jacket skirt sweater tie cap robe"),
    "furniture": _split(
        "chair table bed sofa desk shelf lamp mirror carpet stool bench cabinet drawer pillow curtain clock"
    ),
    "vehicles": _split("car bus train truck boat ship plane bicycle wagon tram taxi van ferry tractor sled rocket"),
    "plants": _split("oak pine rose tulip daisy grass bush fern moss ivy palm willow lily cactus maple reed"),
    "weather": _split(
        "rain snow wind storm fog hail frost thunder lightning sunshine cloud breeze mist ice drizzle heat"
    ),
}
SINGULAR = {
    "animals": "animal",
    "foods": "food",
    "tools": "tool",
    "clothes": "clothing",
    "furniture": "furniture",
    "vehicles": "vehicle",
    "plants": "plant",
    "weather": "weather",
}
ASKED = {  # the category's name in a request for a list
    "animals": "animals",
    "foods": "foods",
    "tools": "tools",
    "clothes": "pieces of clothing",
    "furniture": "pieces of furniture",
    "vehicles": "vehicles",
    "plants": "plants",
    "weather": "kinds of weather",
}
THINGS = tuple(word for words in CATEGORIES.values() for word in words)

OPPOSITES = tuple(
    tuple(pair.split("/"))
    for pair in _split(
        "hot/cold big/small fast/slow high/low young/old hard/soft wet/dry light/dark rich/poor loud/quiet full/empty "
        "early/late open/closed clean/dirty strong/weak happy/sad near/far thick/thin sweet/bitter long/short "
        "true/false right/left cheap/expensive heavy/weightless brave/afraid smooth/rough sharp/blunt deep/shallow"
    )
)
DAYS = _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _split("January February March April May June July August September October November December")

# Question, statement with {} for the answer, answer.
COMMON_FACTS: tuple[tuple[str, str, str], ...] = (
    ("What color is grass?", "the color of grass is {}", "green"),
    ("What color is snow?", "the color of snow is {}", "white"),
    ("What color is a banana?", "the color of a banana is {}", "yellow"),
    ("What color is coal?", "the color of coal is {}", "black"),
    ("What color is blood?", "the color of blood is {}", "red"),
    ("What color is the sky?", "the color of the sky is {}", "blue"),
    ("Where does a fish live?", "a fish lives in {}", "water"),
    ("Where does a bird sleep?", "a bird sleeps in a {}", "nest"),
    ("Where does a bee live?", "a bee lives in a {}", "hive"),
    ("Where does a spider wait?", "a spider waits in a {}", "web"),
    ("Where does a king live?", "a king lives in a {}", "castle"),
    ("Where do we buy medicine?", "we buy medicine in a {}", "pharmacy"),
    ("Where do we borrow books?", "we borrow books in a {}", "library"),
    ("Where do children learn?", "children learn in a {}", "school"),
    ("Where do ships land?", "ships land in a {}", "harbor"),
    ("What does a cow give?", "a cow gives {}", "milk"),
    ("What does a bee make?", "a bee makes {}", "honey"),
    ("What does a hen lay?", "a hen lays an {}", "egg"),
    ("What does a baker bake?", "a baker bakes {}", "bread"),
    ("What does a sheep give?", "a sheep gives {}", "wool"),
    ("What do we cut wood with?", "we cut wood with a {}", "saw"),
    ("What do we dig with?", "we dig with a {}", "shovel"),
    ("What do we write with?", "we write with a {}", "pen"),
    ("What do we see with?", "we see with our {}", "eyes"),
    ("What do we hear with?", "we hear with our {}", "ears"),
    ("What do we tell time with?", "we tell time with a {}", "clock"),
    ("What do we sleep on?", "we sleep on a {}", "bed"),
    ("What falls from the sky in winter?", "what falls from the sky in winter is {}", "snow"),
    ("What gives us light by day?", "what gives us light by day is the {}", "sun"),
    ("What gives us light by night?", "what gives us light by night is the {}", "moon"),
)

# Names of companies, laws, works, species and sites. Each is one word, which identifies the entity.
NAMES = _split(
    "Acorn Almond Amber Anchor Antler Apollo Arrow Aspen Atlas Aurora Autumn Avalon Badger Bamboo Banner Barley Basil "
    "Beacon Birch Bishop Blossom Bramble Breaker Bridge Buffalo Burgundy Cactus Canyon Captain Caramel Cardinal "
    "Cascade Castle Cedar Chapel Cherry Chestnut Cinder Cinnamon Citadel Clover Cobalt Comet Compass Copper Coral "
    "Cosmos Cotton Cougar Crane Crater Crescent Crown Crystal Cypress Dagger Dahlia Delta Desert Diamond Dolphin "
    "Dragon Driftwood Eagle Ebony Echo Eclipse Ember Emerald Emperor Falcon Feather Fern Flame Flint Forest Fountain "
    "Fortune Frontier Galaxy Garden Garnet Gazelle Geyser Ginger Glacier Granite Grove Hamlet Hawk Hazel Heather Heron "
    "Hickory Horizon Hunter Iris Island Ivory Jade Jaguar Jasmine Jasper Jewel Juniper Jupiter Kestrel Kingdom Lagoon "
    "Lantern Laurel Lavender Legend Leopard Liberty Lilac Linden Lotus Magnet Magnolia Mango Maple Marigold Meadow "
    "Melody Mercury Meteor Mint Mirage Monarch Moss Mountain Mulberry Mustang Mystic Nectar Neptune Nimbus Noble Nova "
    "Nutmeg Oasis Ocean Olive Onyx Opal Orbit Orchard Orchid Osprey Otter Panther Paragon Pearl Pebble Pelican Phoenix "
    "Pilgrim Pioneer Plum Prairie Prism Puma Quartz Quill Rainbow Raven Ridge Ruby Saffron Sage Sapphire Saturn "
    "Sequoia Shadow Shepherd Sierra Sparrow Spruce Summit Sunset Swallow Tempest Thistle Thunder Timber Topaz Torch "
    "Trident Trinity Tundra Unicorn Valley Vanilla Velvet Venus Viper Walnut Willow Wolverine Zenith Zephyr"
)
FIRST_NAMES = _split(
    "Anna Ben Clara David Emma Frank Grace Henry Isabel Jack Karen Leo Maria Nathan Olga Paul Rachel Simon Teresa "
    "Victor Wendy Adam Bella Carl Diana Edward Fiona George Helen Ivan Julia Kevin Laura Martin Nora Oscar Peter Rosa "
    "Steven Tina"
)
LAST_NAMES = _split(
    "Stone Hill Baker Carter Fisher Miller Wood Brook Field Marsh Parker Potter Turner Walker Cook Mason Porter Ward "
    "Young Bell Cross Day Fox Green Hart Kent Lane Moore North Price Reed Sharp Snow Swan Vale West White Wolf Page "
    "Rivers"
)
CITIES = _split(
    "Paris London Madrid Rome Berlin Vienna Oslo Dublin Lisbon Athens Cairo Tokyo Delhi Boston Chicago Dallas Denver "
    "Seattle Toronto Sydney Moscow Prague Warsaw Lima Havana Geneva Milan Naples Venice Munich Hamburg Zurich Brussels "
    "Stockholm Helsinki Budapest Bangkok Seoul Singapore Nairobi"
)
GOODS = _split(
    "paper glass steel leather soap candles bricks toys carpets watches engines batteries mirrors pianos bottles tires "
    "cement paint furniture umbrellas cameras radios tents boots helmets knives pencils blankets buttons baskets"
)
COLORS = _split("red blue green yellow white black brown orange purple pink gray gold silver beige turquoise crimson")
TOPICS = _split(
    "fishing trade hunting farming travel schools taxes water roads hospitals music chess cooking gardening sailing "
    "history war love death freedom winter harvest family friendship money sport medicine mining housing railways"
)
PENALTIES = _split(
    "prison exile fine warning whipping confiscation dismissal suspension arrest probation labor eviction deportation "
    "seizure curfew reprimand"
)
OFFICES = _split(
    "treasury police court navy army parliament customs council ministry senate coastguard inspectorate bank embassy "
    "registry commission"
)
MATERIALS = _split("clay violin drums marble flute oil bronze harp silk ink guitar wool bells chalk trumpet sand")
PLACES = _split(
    "caves deserts swamps rivers forests mountains islands lakes valleys beaches jungles volcanoes meadows glaciers "
    "oceans cliffs"
)
USES = _split(
    "cooking medicine dye fuel jewelry building perfume glue ropes lighting cleaning fertilizer bait weaving polishing "
    "decoration"
)
LANGUAGES = _split(
    "French German Spanish Italian Greek Turkish Polish Dutch Russian Arabic Hindi Korean Swedish Latin Danish Finnish"
)
YEARS = tuple(str(year) for year in range(1900, 2000))
NUMBERS = tuple(str(number) for number in range(61))
