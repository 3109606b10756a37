//! The words of the made-up shop.

/// Kinds of things in a topic.
pub const KINDS: usize = 6;

type Topics = [(&'static str, [&'static str; KINDS]); 4];

/// Departments, their topics, and what a topic sells in the order in which it is bought.
#[rustfmt::skip]
pub const DEPARTMENTS: [(&str, Topics); 6] = [
    ("Kitchen", [
        ("Coffee", ["Grinder", "Kettle", "Dripper", "Paper Filter", "Mug", "Milk Frother"]),
        ("Baking", ["Mixing Bowl", "Whisk", "Rolling Pin", "Cake Pan", "Cooling Rack", "Icing Nozzle"]),
        ("Sushi", ["Rice Cooker", "Bamboo Mat", "Fish Knife", "Serving Board", "Soy Dish", "Chopsticks"]),
        ("Barbecue", ["Charcoal Grill", "Fire Starter", "Tongs", "Meat Thermometer", "Marinade", "Grill Brush"]),
    ]),
    ("Garden", [
        ("Rose", ["Spade", "Potting Soil", "Rose Bush", "Fertilizer", "Pruning Shears", "Flower Vase"]),
        ("Vegetable", ["Seed Tray", "Tomato Seeds", "Raised Bed", "Watering Can", "Plant Stake", "Harvest Basket"]),
        ("Lawn", ["Grass Seed", "Lawn Roller", "Sprinkler", "Garden Hose", "Mower", "Leaf Rake"]),
        ("Pond", ["Pond Liner", "Water Pump", "Water Lily", "Goldfish Food", "Pond Net", "Algae Remover"]),
    ]),
    ("Music", [
        ("Guitar", ["Acoustic Guitar", "Tuner", "String Set", "Plectrum", "Capo", "Guitar Strap"]),
        ("Piano", ["Keyboard", "Piano Stool", "Sheet Music", "Metronome", "Sustain Pedal", "Headphones"]),
        ("Drum", ["Snare Drum", "Cymbal", "Drum Sticks", "Practice Pad", "Drum Key", "Ear Plugs"]),
        ("Vinyl", ["Turntable", "Needle", "Preamplifier", "Record Sleeve", "Cleaning Brush", "Record Shelf"]),
    ]),
    ("Outdoors", [
        ("Camping", ["Tent", "Sleeping Bag", "Air Mattress", "Camp Stove", "Lantern", "Folding Chair"]),
        ("Fishing", ["Fishing Rod", "Reel", "Fishing Line", "Lure", "Landing Net", "Tackle Box"]),
        ("Cycling", ["Helmet", "Bike Lock", "Bike Pump", "Inner Tube", "Chain Oil", "Saddle Bag"]),
        ("Climbing", ["Harness", "Climbing Shoes", "Chalk Bag", "Carabiner", "Rope", "Crash Pad"]),
    ]),
    ("Beauty", [
        ("Nail", ["Nail File", "Cuticle Oil", "Base Coat", "Nail Polish", "Top Coat", "Polish Remover"]),
        ("Shaving", ["Safety Razor", "Razor Blades", "Shaving Soap", "Shaving Brush", "Aftershave", "Alum Block"]),
        ("Hair", ["Shampoo", "Conditioner", "Hair Mask", "Hair Dryer", "Round Brush", "Hair Spray"]),
        ("Skin Care", ["Cleanser", "Toner", "Face Serum", "Moisturizer", "Sunscreen", "Eye Cream"]),
    ]),
    ("Office", [
        ("Calligraphy", ["Fountain Pen", "Ink Bottle", "Nib Set", "Laid Paper", "Blotter", "Wax Seal"]),
        ("Painting", ["Easel", "Canvas", "Acrylic Paint", "Paint Brush", "Palette", "Varnish"]),
        ("Printing", ["Inkjet Printer", "Ink Cartridge", "Photo Paper", "Paper Trimmer", "Laminator", "Photo Album"]),
        ("Filing", ["Filing Cabinet", "Hanging Folder", "Label Maker", "Hole Punch", "Ring Binder", "Sheet Protector"]),
    ]),
];

/// What tells things of a kind apart.
#[rustfmt::skip]
pub const LOOKS: [&str; 12] = [
    "Classic", "Compact", "Deluxe", "Everyday", "Vintage", "Slim", "Heavy Duty", "Travel", "Premium", "Starter",
    "Silent", "Eco",
];

/// Three or so for each topic.
#[rustfmt::skip]
pub const BRANDS: [&str; 24] = [
    "Alder", "Brightwell", "Corvane", "Dunmore", "Elkhorn", "Fernway", "Galloway", "Hartsfield", "Ironbark",
    "Juniper & Co", "Kestrel", "Larkspur", "Marlow", "Northpine", "Oakhurst", "Pemberton", "Quillon", "Ravensby",
    "Silverlake", "Thornbury", "Umberto", "Valewood", "Westmarch", "Yarrow",
];
