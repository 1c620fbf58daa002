//! The prelude: modules of the language written in the language, shipped inside golfc.
//!
//! *Takes* nothing; *gives* the text of each `std` module; *promises* that the texts are those of `compiler/src/prelude/`.

/// Module texts by name.
#[derive(Clone, Debug)]
pub struct Prelude {
    modules: Vec<(String, String)>,
}

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        /// The modules golfc ships.
        const STD: &[(&str, &str)] = &[$(($name, include_str!(concat!("../prelude/", $name, ".golf")))),*];
    };
}

modules!["attention", "average", "embed", "mlp", "norm", "optim", "quant", "schedule"];

impl Prelude {
    /// The prelude of this golfc.
    pub fn std() -> Prelude {
        Prelude { modules: STD.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect() }
    }

    /// The text of a module.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.modules.iter().find(|(module, _)| module == name).map(|(_, text)| text.as_str())
    }

    /// Names of all modules.
    pub fn names(&self) -> Vec<&str> {
        self.modules.iter().map(|(name, _)| name.as_str()).collect()
    }
}
