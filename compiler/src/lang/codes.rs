//! The codes of the language's messages, 100–199, with what they mean.
//!
//! *Takes* nothing; *gives* one constant per code and the table [`CODES`]; *promises* that a code is never reused.

use golf_grammar::Code;

/// A code and its meaning.
pub struct CodeInfo {
    /// The code.
    pub code: Code,
    /// One line: what it means and, where that is not obvious, what to do.
    pub text: &'static str,
}

macro_rules! codes {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        $(#[doc = $text] pub const $name: Code = Code($number);)*
        /// Every code of this stage, in order.
        pub const CODES: &[CodeInfo] = &[$(CodeInfo { code: $name, text: $text }),*];
    };
}

codes! {
    // The file as a whole.
    EMPTY_FILE = 100, "the program has no items";
    MISSING_BLOCK = 101, "a program needs `model`, `train`, `quantize` and `evaluate`, each once";
    DUPLICATE_BLOCK = 102, "a block of which there can be one stands twice";
    DUPLICATE_NAME = 103, "two things of one namespace have the same name in one place";
    UNKNOWN_MODULE = 104, "`use` names a module that does not exist";
    UNUSED_ITEM = 105, "an item of the program that nothing needs: it would have no effect";
    UNUSED_LOCAL = 106, "a local name or parameter that nothing reads (warning)";
    CYCLE = 107, "a constant or axis is defined by itself";
    // Names.
    UNKNOWN_NAME = 110, "no value of this name is visible here";
    UNKNOWN_AXIS = 111, "no axis of this name is visible here";
    UNKNOWN_TYPE = 112, "no type of this name";
    UNKNOWN_FIELD = 113, "the value has no field of this name";
    UNKNOWN_METHOD = 114, "the value has no method of this name";
    NOT_CALLABLE = 115, "the value cannot be called";
    // Arguments.
    UNKNOWN_ARGUMENT = 120, "the function has no parameter of this name";
    TOO_MANY_ARGUMENTS = 121, "more arguments than parameters";
    MISSING_ARGUMENT = 122, "a parameter without a default is not given";
    ARGUMENT_TWICE = 123, "a parameter is given twice";
    OVER = 124, "the axes after `over` do not fit the function";
    ARGUMENT_TYPE = 125, "a value does not have the declared type";
    REQUIRED = 126, "a definition is used against what it requires";
    // Values.
    WRONG_KIND = 130, "an operation cannot be applied to values of these kinds";
    INEXACT_DIVISION = 131, "`//` does not divide exactly";
    ARITHMETIC = 132, "compile-time arithmetic has no result: overflow, division by zero, not a number";
    INDEX_RANGE = 133, "an index outside a list or axis, or `pop` of an empty list";
    REBIND = 134, "`=` gives an existing name a new value of the same type; this is not possible here";
    CONDITION = 135, "a condition is not true or false while compiling";
    OPTIONAL = 136, "`none` where a value is needed: unwrap with `if x { … }` or `??`";
    LIMIT = 137, "evaluation does not end, or is too large: recursion depth, loop turns or graph size";
    PATTERN = 138, "the names on the left do not match the value on the right";
    NOT_HERE = 139, "a statement or value that cannot stand in this place";
    // Tensors.
    AXES_DIFFER = 140, "operands have different axes where they must agree";
    OUTER_PRODUCT = 141, "neither operand's axes contain the other's: an accidental outer product";
    MISSING_AXIS = 142, "an operand lacks an axis that the operation names";
    DUPLICATE_AXIS = 143, "a tensor would have one axis twice: `rename` one of them";
    AXIS_SIZE = 144, "sizes of axes do not multiply or add out, or are not positive";
    TENSOR_DTYPE = 145, "operands of the wrong dtype";
    TENSOR = 146, "an operation is not possible for these operands";
    AMBIGUOUS_DOT = 147, "`dot` without `over` where not exactly one axis is shared with a parameter";
    // Parameters.
    DUPLICATE_PARAMETER = 150, "two parameters have the same label path";
    UNREACHED_PARAMETER = 151, "no path of the loss reaches a parameter, and it is not declared `unused`";
    USED_UNUSED = 152, "a parameter is declared `unused`, but the loss depends on it";
    NO_INIT = 153, "a parameter or state needs an initial value after `~`, one of the known ones";
    NO_GROUP = 154, "a parameter needs a group after `in`";
    PARAMETER_PLACE = 155, "parameters and layers are made in a layer's body or in `model`, once";
    LABEL = 156, "a label names one layer instance, and consists of letters, digits, `_`, `-` and points";
    // Settings.
    UNKNOWN_SETTING = 160, "the block has no slot of this name";
    SETTING_TWICE = 161, "a setting is defined twice";
    MISSING_SETTING = 162, "a slot without a default is not set";
    BAD_SETTING = 163, "a setting has a value that its slot cannot take";
    UNKNOWN_GROUP = 164, "a rule selects a group in which no parameter is";
    EMPTY_SELECTOR = 165, "a rule that never applies: earlier rules take all that it selects";
    UNCOVERED = 166, "a parameter that no rule selects";
    UNKNOWN_RULE = 167, "no optimizer, quantizer or average of this name";
    SIZES = 168, "sizes of the settings do not fit each other";
    VALIDATION_DATA = 169, "validation data outside `evaluate` (it may only be scored, and adapted on after it was scored)";
    STATE = 170, "a state is declared or used in a way that cannot be kept from step to step";
    CLOCK = 171, "the clock has no such field here, or an operation is not possible on host scalars";
    ILLEGAL = 172, "an evaluation that the rules of the challenge forbid";
    CALIBRATION = 173, "`calibrate` where no quantizer takes inputs, or a quantizer that takes inputs without `calibrate`";
    UNTAPPED = 174, "a quantizer takes what its parameter is multiplied with, and that is not one thing along the axis it needs";
    // --set
    SET_SYNTAX = 180, "`--set` takes PATH=EXPR";
    SET_PATH = 181, "`--set` names a constant or setting that does not exist";
    // Limits of this golfc.
    UNSUPPORTED = 190, "part of the language that this golfc does not implement";
}

/// The meaning of a code of this stage.
pub fn explain(code: Code) -> Option<&'static str> {
    CODES.iter().find(|info| info.code == code).map(|info| info.text)
}
