//! Gathers the instances of a swept stage into one table, with the values of the axes as columns. The graph puts it
//! wherever an input says `stage[*]`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::graph::ANY;
use crate::operator::{Binding, Bound, Context, Entry, Input, Instance, OUT, Operator, Registry};
use crate::sweep::text;
use crate::table::{Shape, Table, Tables};

/// Puts tables of equal columns one after the other, each row with the values of the axes it comes from.
///
/// # In
/// Any number of tables of equal columns, one for every point.
///
/// # Out
/// `out`: a column for every axis (whole numbers, numbers, or text), then the columns of the tables. Rows in the order of
/// the points.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gather {
    /// Names of the axes, in order.
    pub axes: Vec<String>,
    /// For every input port, in order, the values of the axes.
    pub points: Vec<Vec<Value>>,
}

impl Gather {
    /// The operator's name.
    pub(crate) const ENTRY: &'static str = "gather";

    /// A gather over the points of instances: (axis, value) lists over the same axes.
    pub(crate) fn over(points: Vec<Vec<(String, Value)>>) -> Self {
        let axes = points
            .first()
            .map(|point| point.iter().map(|(axis, _)| axis.replace('.', "_")).collect());
        Gather {
            axes: axes.unwrap_or_default(),
            points: points
                .into_iter()
                .map(|point| point.into_iter().map(|(_, value)| value).collect())
                .collect(),
        }
    }

    /// The port of the n-th instance.
    pub(crate) fn port(index: usize) -> String {
        format!("instance_{index:05}")
    }

    /// What the registry would know of it.
    pub(crate) fn entry() -> Entry {
        let registry = Registry::new().with::<Gather>();
        registry.get(Self::ENTRY).expect("it was just put there").clone()
    }

    pub(crate) fn instance(self) -> Arc<dyn Instance> {
        Arc::new(self)
    }

    /// The type of an axis column: the narrowest that holds all values.
    fn kind(&self, axis: usize) -> DataType {
        let values = || self.points.iter().map(|point| &point[axis]);
        if values().all(Value::is_i64) {
            DataType::Int64
        } else if values().all(Value::is_number) {
            DataType::Float64
        } else {
            DataType::Utf8
        }
    }

    fn column(&self, axis: usize, point: usize, rows: usize) -> ArrayRef {
        let value = &self.points[point][axis];
        match self.kind(axis) {
            DataType::Int64 => Arc::new(Int64Array::from(vec![value.as_i64(); rows])),
            DataType::Float64 => Arc::new(Float64Array::from(vec![value.as_f64(); rows])),
            _ => Arc::new(StringArray::from(vec![text(value); rows])),
        }
    }
}

impl Operator for Gather {
    const NAME: &'static str = Gather::ENTRY;
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required(ANY, "tables of equal columns")];

    fn bind(&self, binding: &Binding) -> Bound {
        let first = Self::port(0);
        let Shape::Table(schema) = binding.shape(&first) else {
            if let Shape::Folder(layout) = binding.shape(&first) {
                let message = format!("only tables can be gathered, this is a {layout} folder");
                binding.input_problem(&first, Error::user("wrong-input", message));
            }
            return Bound::whole().out(Shape::Unknown);
        };
        let names = |schema: &Schema| -> Vec<(String, DataType)> {
            let fields = schema.fields().iter();
            fields
                .map(|field| (field.name().clone(), field.data_type().clone()))
                .collect()
        };
        for port in binding.inputs() {
            if let Some(other) = binding.schema(port)
                && names(other) != names(&schema)
            {
                let message = "instances with different columns cannot be gathered";
                binding.input_problem(port, Error::user("different-columns", message));
                break;
            }
        }
        let mut fields: Vec<Field> = Vec::new();
        for (index, axis) in self.axes.iter().enumerate() {
            if schema.field_with_name(axis).is_ok() {
                let message = format!("axis \"{axis}\" has the name of a column");
                let hint = "name the axis otherwise: NAME: { set: WHAT IT SETS, to: [...] }";
                binding.input_problem(&first, Error::user("duplicate-column", message).hint(hint));
            }
            fields.push(Field::new(axis, self.kind(index), false));
        }
        // Facts of the data that travel as metadata may differ between instances, so they stay behind.
        fields.extend(
            schema
                .fields()
                .iter()
                .map(|field| field.as_ref().clone().with_metadata(Default::default())),
        );
        Bound::whole().out(Shape::table(fields))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let mut batches = Vec::new();
        let mut schema = None;
        let by_port: BTreeMap<String, usize> = (0..self.points.len()).map(|index| (Self::port(index), index)).collect();
        for (port, table) in inputs.iter() {
            context.check_cancelled()?;
            let point = by_port
                .get(port)
                .ok_or_else(|| Error::internal(format!("no point for \"{port}\"")))?;
            let kinds = (0..self.axes.len()).map(|axis| Field::new(&self.axes[axis], self.kind(axis), false));
            let plain = table.schema()?;
            let plain = plain
                .fields()
                .iter()
                .map(|field| field.as_ref().clone().with_metadata(Default::default()));
            let full = Arc::new(Schema::new(kinds.chain(plain).collect::<Vec<_>>()));
            for batch in table.batches()? {
                let batch = batch?;
                let axes = (0..self.axes.len()).map(|axis| self.column(axis, *point, batch.num_rows()));
                let columns = axes.chain(batch.columns().iter().cloned()).collect();
                batches.push(RecordBatch::try_new(full.clone(), columns)?);
            }
            schema = Some(full);
        }
        let schema = schema.ok_or_else(|| Error::internal("nothing to gather"))?;
        Ok(Tables::new().with(OUT, Table::Batches(schema, batches)))
    }
}
