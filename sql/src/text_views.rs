//! Texts read as they lie in a file, made views when a scan hands them on.
//!
//! Views are quicker to group, sort and join than texts with offsets, but the Parquet reader makes them one by one, with a
//! branch on every length. Where a file holds lengths apart from the texts it is less work to read them with offsets, to
//! filter those, and to make views of what is left without a branch. A column to be read so is marked in the schema of the
//! scan and cast to views in its projection, which DataFusion understands: it takes the cast off a column that is
//! compared with a literal. What casts are left when a file is opened becomes [`ViewsOf`].

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, StringViewArray};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Column, LikeExpr, Literal};
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
};

/// Longest text that lies in its view.
const INLINE: usize = 12;

/// Bytes that are read at once.
const WORD: usize = 16;

/// Marks a column that is made views after it was read. It also keeps the adapter in play: DataFusion asks it nothing
/// where the schemas of scan and file are the same.
const MARK: &str = "sluice.views";

/// The schema of a scan that shows `shown`, with the columns `chosen` read as texts with offsets.
pub(crate) fn marked(shown: &Schema, chosen: &[bool]) -> SchemaRef {
    let fields = shown.fields().iter().zip(chosen).map(|(field, chosen)| match chosen {
        true => {
            let marks = HashMap::from([(MARK.to_string(), String::new())]);
            let read = field.as_ref().clone().with_data_type(DataType::Utf8);
            Arc::new(read.with_metadata(marks))
        }
        false => field.clone(),
    });
    let fields: Vec<FieldRef> = fields.collect();
    Arc::new(Schema::new_with_metadata(fields, shown.metadata().clone()))
}

/// What a scan of the schema that [`marked`] made hands on: the columns of `shown`, in order.
pub(crate) fn projection(shown: &Schema, chosen: &[bool]) -> Vec<ProjectionExpr> {
    let columns = shown.fields().iter().enumerate().map(|(at, field)| {
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(field.name(), at));
        // Constant columns come last and are none of the file's.
        let expression = match chosen.get(at) {
            Some(true) => Arc::new(CastExpr::new_with_target_field(column, field.clone(), None)),
            _ => column,
        };
        ProjectionExpr::new(expression, field.name())
    });
    columns.collect()
}

/// Fits expressions to the schema of a file, and casts of texts to views with them.
#[derive(Debug)]
pub(crate) struct ViewsAdapters;

impl PhysicalExprAdapterFactory for ViewsAdapters {
    fn create(&self, scan: SchemaRef, file: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let inner = DefaultPhysicalExprAdapterFactory.create(scan, file.clone())?;
        Ok(Arc::new(ViewsAdapter { inner, file }))
    }
}

#[derive(Debug)]
struct ViewsAdapter {
    inner: Arc<dyn PhysicalExprAdapter>,
    file: SchemaRef,
}

impl PhysicalExprAdapter for ViewsAdapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        let fitted = self.inner.rewrite(expr)?;
        // The mark alone is no difference.
        let unmarked = fitted.transform_up(|node| match self.cast(&node) {
            Some((inner, from, to)) if from == to => Ok(Transformed::yes(inner)),
            _ => Ok(Transformed::no(node)),
        })?;
        let rewritten = unmarked.data.transform_down(|node| {
            if let Some(like) = node.downcast_ref::<LikeExpr>().and_then(|like| self.like(like)) {
                return Ok(Transformed::new(like, true, TreeNodeRecursion::Jump));
            }
            // DataFusion takes the cast off here.
            if is_comparison(&node) {
                return Ok(Transformed::new(node, false, TreeNodeRecursion::Jump));
            }
            match self.cast(&node) {
                Some((inner, DataType::Utf8, DataType::Utf8View)) => {
                    let views = Arc::new(ViewsOf(inner)) as Arc<dyn PhysicalExpr>;
                    Ok(Transformed::new(views, true, TreeNodeRecursion::Jump))
                }
                _ => Ok(Transformed::no(node)),
            }
        });
        rewritten.data()
    }
}

impl ViewsAdapter {
    /// What a cast casts, from what type and to what type.
    fn cast(&self, node: &Arc<dyn PhysicalExpr>) -> Option<(Arc<dyn PhysicalExpr>, DataType, DataType)> {
        let cast = node.downcast_ref::<CastExpr>()?;
        let from = cast.expr().data_type(&self.file).ok()?;
        Some((cast.expr().clone(), from, cast.cast_type().clone()))
    }

    /// The same on texts with offsets, if the pattern is a literal.
    fn like(&self, like: &LikeExpr) -> Option<Arc<dyn PhysicalExpr>> {
        let (inner, DataType::Utf8, DataType::Utf8View) = self.cast(like.expr())? else {
            return None;
        };
        let ScalarValue::Utf8View(pattern) = like.pattern().downcast_ref::<Literal>()?.value() else {
            return None;
        };
        let pattern = Arc::new(Literal::new(ScalarValue::Utf8(pattern.clone())));
        let like = LikeExpr::new(like.negated(), like.case_insensitive(), inner, pattern);
        Some(Arc::new(like))
    }
}

/// Whether it compares a cast with a literal.
fn is_comparison(node: &Arc<dyn PhysicalExpr>) -> bool {
    let Some(node) = node.downcast_ref::<BinaryExpr>() else {
        return false;
    };
    let sides = (node.left(), node.right());
    let known = node.op().supports_propagation();
    known
        && ((sides.0.is::<CastExpr>() && sides.1.is::<Literal>())
            || (sides.0.is::<Literal>() && sides.1.is::<CastExpr>()))
}

/// Texts as views.
#[derive(Debug, Eq)]
struct ViewsOf(Arc<dyn PhysicalExpr>);

// Derived, it would move the expression.
impl PartialEq for ViewsOf {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq(&other.0)
    }
}

impl Hash for ViewsOf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Display for ViewsOf {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "views({})", self.0)
    }
}

impl PhysicalExpr for ViewsOf {
    fn data_type(&self, _: &Schema) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.0.nullable(schema)
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        let field = self.0.return_field(schema)?;
        Ok(Arc::new(Field::new(
            field.name(),
            DataType::Utf8View,
            field.is_nullable(),
        )))
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        Ok(match self.0.evaluate(batch)? {
            ColumnarValue::Array(texts) => ColumnarValue::Array(Arc::new(views(texts.as_string())) as ArrayRef),
            ColumnarValue::Scalar(text) => ColumnarValue::Scalar(text.cast_to(&DataType::Utf8View)?),
        })
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.0]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let [texts] = <[_; 1]>::try_from(children).expect("one child");
        Ok(Arc::new(ViewsOf(texts)))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt_sql(f)
    }

    /// What row groups are judged by: a cast, which DataFusion knows to keep the order.
    fn snapshot(&self) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let cast = CastExpr::new(self.0.clone(), DataType::Utf8View, None);
        Ok(Some(Arc::new(cast)))
    }
}

/// The bytes of a word that belong to a text of so many.
const MASKS: [u128; INLINE + 1] = {
    let mut masks = [0; INLINE + 1];
    let mut length = 0;
    while length <= INLINE {
        masks[length] = (1 << (8 * length)) - 1;
        length += 1;
    }
    masks
};

/// The same texts as views. Those of more than twelve bytes stay where they are.
fn views(texts: &StringArray) -> StringViewArray {
    let (offsets, values) = (texts.value_offsets(), texts.value_data());
    let mut longest = 0;
    let views = offsets.windows(2).map(|bounds| {
        let (start, length) = (bounds[0] as usize, (bounds[1] - bounds[0]) as usize);
        longest = longest.max(length);
        let word = match values[start..].first_chunk::<WORD>() {
            Some(word) => u128::from_le_bytes(*word),
            None => last_word(&values[start..]),
        };
        // Length, then the text; or length, four bytes, number of the buffer, place in it.
        let inline = (word & MASKS[length.min(INLINE)]) << 32;
        let outside = ((start as u128) << 96) | ((word & MASKS[4]) << 32);
        length as u128 | if length <= INLINE { inline } else { outside }
    });
    let views: Vec<u128> = views.collect();
    let buffers = match longest > INLINE {
        true => vec![texts.values().clone()],
        false => Vec::new(),
    };
    // SAFETY: the texts were valid, and every view is the text between two of their offsets.
    unsafe { StringViewArray::new_unchecked(ScalarBuffer::from(views), buffers, texts.nulls().cloned()) }
}

/// A word of which less than all is there.
fn last_word(values: &[u8]) -> u128 {
    let mut word = [0; WORD];
    word[..values.len()].copy_from_slice(values);
    u128::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn views_are_the_same_texts(
            texts in prop::collection::vec(prop::option::of("[a-z✓]{0,20}"), 0..60),
            first in 0..60_usize,
            rows in 0..60_usize,
        ) {
            let texts = StringArray::from(texts);
            let first = first.min(texts.len());
            let texts = texts.slice(first, rows.min(texts.len() - first));
            let made = views(&texts);
            // All checks that an array of unknown origin gets.
            let checked = StringViewArray::try_new(made.views().clone(), made.data_buffers().to_vec(), made.nulls().cloned());
            let checked = checked.unwrap();
            prop_assert!(checked.iter().eq(texts.iter()));
            prop_assert_eq!(made.null_count(), texts.null_count());
        }
    }
}
