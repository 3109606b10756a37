//! Text as shops publish it: HTML entities decoded.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, LargeStringArray, StringArray, StringViewArray};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use html_escape::decode_html_entities;

use super::lists;
use super::{About, check_arguments, wrong_type};

/// The family's reference.
pub(super) const ABOUT: &[About] = &[About {
    name: "html_unescape",
    signature: "html_unescape(text) -> text",
    line: "The text with HTML entities such as &amp; decoded, once.",
    detail: "As ingest_items does it, which also trims. What is no entity stays as it is. NULL if the text is NULL.",
    arguments: &[("text", "A text.")],
}];

/// The functions.
pub(super) fn all() -> Vec<ScalarUDF> {
    vec![ScalarUDF::from(Unescape {
        signature: Signature::user_defined(Volatility::Immutable),
        documentation: ABOUT[0].documentation(),
    })]
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Unescape {
    signature: Signature,
    documentation: Documentation,
}

impl ScalarUDFImpl for Unescape {
    fn name(&self) -> &str {
        ABOUT[0].name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let plain = |given: &DataType| match given {
            DataType::Null => DataType::Utf8,
            DataType::Dictionary(_, values) => values.as_ref().clone(),
            other => other.clone(),
        };
        Ok(given.iter().map(plain).collect())
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        check_arguments(&ABOUT[0], given, 1)?;
        match &given[0] {
            text if text.is_string() => Ok(text.clone()),
            other => wrong_type(&ABOUT[0], 0, "a text", other),
        }
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (texts, _) = lists::argument(&args.args[0])?;
        let decoded: ArrayRef = match texts.data_type() {
            DataType::Utf8View => {
                let texts = texts.as_string_view().iter();
                Arc::new(StringViewArray::from_iter(
                    texts.map(|text| text.map(decode_html_entities)),
                ))
            }
            DataType::LargeUtf8 => {
                let texts = texts.as_string::<i64>().iter();
                Arc::new(LargeStringArray::from_iter(
                    texts.map(|text| text.map(decode_html_entities)),
                ))
            }
            _ => {
                let texts = texts.as_string::<i32>().iter();
                Arc::new(StringArray::from_iter(texts.map(|text| text.map(decode_html_entities))))
            }
        };
        lists::result(&args.args, decoded)
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}
