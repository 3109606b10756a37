//! The first rows of every group: what `row_number() <= k` lets through is found before the rows are sorted.
//!
//! "The last item of every user" is a window over all rows of which one a user is kept. The plan would sort all rows; the
//! rule here puts a node below the sort that drops every row that has `k` better ones in its group. Window and filter
//! stay as they are, so a node that drops too little (it starts afresh when memory is short) costs time, not truth.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{interleave_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, ScalarValue};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_expr::utils::split_conjunction;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, replace_children_if_necessary};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::BoundedWindowAggExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, ReplaceChildrenOptions,
    SendableRecordBatchStream, apply_expression_roots,
};
use futures_util::{TryStreamExt, stream};
use smallvec::SmallVec;

use crate::row_numbers::{are_compared_alike, is_row_number};

/// More rows than this of one group are left to the sort.
const MOST: usize = 1_000;

/// Rows that are held beyond twice those still wanted.
const SLACK: usize = 1 << 16;

/// Puts [`FirstRowsExec`] below the sort of a `row_number()` that a filter bounds.
#[derive(Debug)]
pub(crate) struct FirstRows;

impl PhysicalOptimizerRule for FirstRows {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_down(|node| {
            let bounded = node.downcast_ref::<FilterExec>().and_then(|filter| {
                let bounds = split_conjunction(filter.predicate()).into_iter().filter_map(bound);
                let mut below = bounds.filter_map(|(column, k)| reduced(filter.input(), column, k));
                below.next()
            });
            match bounded {
                Some(input) => Ok(Transformed::yes(replace_children_if_necessary(node, vec![input?])?)),
                None => Ok(Transformed::no(node)),
            }
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "FirstRows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The column that a condition bounds from above, and by how much.
fn bound(condition: &Arc<dyn PhysicalExpr>) -> Option<(usize, usize)> {
    let condition = condition.downcast_ref::<BinaryExpr>()?;
    let (left, right) = (condition.left(), condition.right());
    let (column, value, op) = match (left.downcast_ref::<Column>(), right.downcast_ref::<Literal>()) {
        (Some(column), Some(value)) => (column, value, *condition.op()),
        _ => (
            right.downcast_ref::<Column>()?,
            left.downcast_ref::<Literal>()?,
            condition.op().swap()?,
        ),
    };
    // 2.5 would become 2.
    let whole = value.value().data_type().is_integer();
    let ScalarValue::UInt64(Some(value)) = value.value().cast_to(&DataType::UInt64).ok()? else {
        return None;
    };
    if !whole {
        return None;
    }
    let most = match op {
        Operator::Eq | Operator::LtEq => value,
        Operator::Lt => value.checked_sub(1)?,
        _ => return None,
    };
    let most = usize::try_from(most).ok()?;
    (1..=MOST).contains(&most).then_some((column.index(), most))
}

/// The plan below the filter with fewer rows to sort, if its `column` is the `row_number()` of a sort.
fn reduced(plan: &Arc<dyn ExecutionPlan>, column: usize, most: usize) -> Option<Result<Arc<dyn ExecutionPlan>>> {
    let child = plan.children().into_iter().next()?;
    let input = if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let inner = projection.expr().get(column)?.expr.downcast_ref::<Column>()?.index();
        reduced(child, inner, most)?
    } else {
        let window = plan.downcast_ref::<BoundedWindowAggExec>()?;
        // Another window over the same rows would miss those that are dropped.
        let [ranking] = window.window_expr() else { return None };
        if column != window.input().schema().fields().len() || !is_row_number(ranking.as_ref()) {
            return None;
        }
        let sort = child.downcast_ref::<SortExec>().filter(|sort| sort.fetch().is_none())?;
        let first = FirstRowsExec::new(sort.input().clone(), ranking.partition_by(), ranking.order_by(), most)?;
        replace_children_if_necessary(child.clone(), vec![Arc::new(first)])
    };
    Some(input.and_then(|input| replace_children_if_necessary(plan.clone(), vec![input])))
}

/// Drops rows that have `most` better ones in their group. Rows come in no order.
#[derive(Clone, Debug)]
struct FirstRowsExec {
    input: Arc<dyn ExecutionPlan>,
    groups: Vec<Arc<dyn PhysicalExpr>>,
    order: Vec<PhysicalSortExpr>,
    most: usize,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl FirstRowsExec {
    /// None where groups or order are of types that this does not compare as the window does.
    fn new(
        input: Arc<dyn ExecutionPlan>,
        groups: &[Arc<dyn PhysicalExpr>],
        order: &[PhysicalSortExpr],
        most: usize,
    ) -> Option<Self> {
        let schema = input.schema();
        let kind = |expression: &Arc<dyn PhysicalExpr>| expression.data_type(&schema).ok();
        let sorted = order.iter().map(|sort| kind(&sort.expr).map(SortField::new));
        let sorted: Vec<SortField> = sorted.collect::<Option<_>>()?;
        if !are_compared_alike(groups, &schema) || !RowConverter::supports_fields(&sorted) {
            return None;
        }
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            input.output_partitioning().clone(),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Some(FirstRowsExec {
            input,
            groups: groups.to_vec(),
            order: order.to_vec(),
            most,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }
}

impl DisplayAs for FirstRowsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let groups: Vec<String> = self.groups.iter().map(ToString::to_string).collect();
        let order: Vec<String> = self.order.iter().map(ToString::to_string).collect();
        let (groups, order) = (groups.join(", "), order.join(", "));
        write!(
            f,
            "FirstRowsExec: most={}, groups=[{groups}], order=[{order}]",
            self.most
        )
    }
}

impl ExecutionPlan for FirstRowsExec {
    fn name(&self) -> &'static str {
        "FirstRowsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children).expect("one child");
        let replaced = FirstRowsExec::new(input.clone(), &self.groups, &self.order, self.most);
        Ok(replaced.map_or(input, |replaced| Arc::new(replaced)))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        replace_children_if_necessary(self, children)
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let order = self.order.iter().map(|sort| &sort.expr);
        apply_expression_roots(self.groups.iter().chain(order), f)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context.clone())?;
        let consumer = MemoryConsumer::new(format!("FirstRowsExec[{partition}]"));
        let best = Best::new(self, consumer.register(context.memory_pool()))?;
        let rows = context.session_config().batch_size();
        let measured = BaselineMetrics::new(&self.metrics, partition);
        let found = stream::try_unfold((input, best), next_found);
        let found = found.map_ok(move |batch| {
            measured.record_output(batch.num_rows());
            stream::iter(slices(batch, rows).map(Ok))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema(),
            found.try_flatten(),
        )))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// Reads on until memory is short or the input is over: what is found then.
async fn next_found(
    (mut input, mut best): (SendableRecordBatchStream, Best),
) -> Result<Option<(RecordBatch, (SendableRecordBatchStream, Best))>> {
    while let Some(batch) = input.try_next().await? {
        best.add(&batch)?;
        if !best.fits()
            && let Some(found) = best.finish()?
        {
            return Ok(Some((found, (input, best))));
        }
    }
    Ok(best.finish()?.map(|found| (found, (input, best))))
}

fn slices(batch: RecordBatch, rows: usize) -> impl Iterator<Item = RecordBatch> {
    (0..batch.num_rows())
        .step_by(rows)
        .map(move |start| batch.slice(start, rows.min(batch.num_rows() - start)))
}

/// A row that is among the first of its group.
struct Kept {
    /// Its place in the group's order, as bytes that compare like it.
    key: SmallVec<[u8; 24]>,
    batch: usize,
    row: usize,
}

/// The best rows seen so far.
struct Best {
    schema: SchemaRef,
    groups: Vec<Arc<dyn PhysicalExpr>>,
    order: Vec<PhysicalSortExpr>,
    most: usize,
    values: Box<dyn GroupValues>,
    converter: RowConverter,
    /// By group, best first. Mostly one row a group is asked for: it lies here, one look into memory away.
    kept: Vec<SmallVec<[Kept; 1]>>,
    wanted: usize,
    batches: Vec<RecordBatch>,
    /// Rows and bytes of them.
    held: usize,
    bytes: usize,
    reservation: MemoryReservation,
}

impl Best {
    fn new(plan: &FirstRowsExec, reservation: MemoryReservation) -> Result<Self> {
        let schema = plan.schema();
        let fields = plan.order.iter().map(|sort| {
            let kind = sort.expr.data_type(&schema)?;
            Ok(SortField::new_with_options(kind, sort.options))
        });
        Ok(Best {
            values: group_values(&plan.groups, &schema)?,
            converter: RowConverter::new(fields.collect::<Result<_>>()?)?,
            groups: plan.groups.clone(),
            order: plan.order.clone(),
            most: plan.most,
            kept: Vec::new(),
            wanted: 0,
            batches: Vec::new(),
            held: 0,
            bytes: 0,
            reservation,
            schema,
        })
    }

    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let arrays = |expression: &Arc<dyn PhysicalExpr>| expression.evaluate(batch)?.into_array(batch.num_rows());
        let values: Vec<ArrayRef> = self.groups.iter().map(arrays).collect::<Result<_>>()?;
        let order: Vec<ArrayRef> = self
            .order
            .iter()
            .map(|sort| arrays(&sort.expr))
            .collect::<Result<_>>()?;
        let mut groups = Vec::with_capacity(batch.num_rows());
        self.values.intern(&values, &mut groups)?;
        self.kept.resize_with(self.values.len(), SmallVec::new);
        let keys = match order.is_empty() {
            true => None,
            false => Some(self.converter.convert_columns(&order)?),
        };
        let at = self.batches.len();
        let mut chosen = Vec::new();
        for (row, &group) in groups.iter().enumerate() {
            let key = keys.as_ref().map_or(&[][..], |keys| keys.row(row).data());
            let kept = &mut self.kept[group];
            match kept.last() {
                Some(worst) if kept.len() == self.most => match *key < *worst.key {
                    true => drop(kept.pop()),
                    false => continue,
                },
                _ => self.wanted += 1,
            }
            // Behind its equals: of equal rows the first seen stay.
            let position = kept.partition_point(|better| *better.key <= *key);
            let key = SmallVec::from_slice(key);
            kept.insert(position, Kept { key, batch: at, row });
            chosen.push((row, group));
        }
        self.hold(batch, chosen)
    }

    /// Holds the chosen rows of a batch that a later one of it has not pushed out.
    fn hold(&mut self, batch: &RecordBatch, chosen: Vec<(usize, usize)>) -> Result<()> {
        let at = self.batches.len();
        let mut rows = Vec::with_capacity(chosen.len());
        for (row, group) in chosen {
            let mut kept = self.kept[group].iter_mut();
            if let Some(kept) = kept.find(|kept| kept.batch == at && kept.row == row) {
                // Its row in what is held; marked as such by a batch that is not yet there.
                kept.batch = usize::MAX;
                kept.row = rows.len();
                rows.push((row as u32, group));
            }
        }
        for (_, group) in &rows {
            for kept in &mut self.kept[*group] {
                if kept.batch == usize::MAX {
                    kept.batch = at;
                }
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let indices = UInt32Array::from_iter_values(rows.iter().map(|(row, _)| *row));
        let batch = compact(&take_record_batch(batch, &indices)?)?;
        self.held += rows.len();
        self.bytes += batch.get_array_memory_size();
        self.batches.push(batch);
        match self.held > 2 * self.wanted + SLACK {
            true => self.collect(),
            false => Ok(()),
        }
    }

    /// Lets go of rows that better ones have pushed out.
    fn collect(&mut self) -> Result<()> {
        let mut places = Vec::with_capacity(self.wanted);
        for kept in self.kept.iter_mut().flatten() {
            places.push((kept.batch, kept.row));
            (kept.batch, kept.row) = (0, places.len() - 1);
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let whole = compact(&interleave_record_batch(&batches, &places)?)?;
        self.bytes = whole.get_array_memory_size();
        self.batches = vec![whole];
        self.held = self.wanted;
        Ok(())
    }

    /// Whether what is held is within the statement's memory.
    fn fits(&mut self) -> bool {
        let first = self.kept.iter().flatten().next();
        let spilled = first.map_or(0, |kept| if kept.key.spilled() { kept.key.len() } else { 0 });
        let places = self.kept.capacity() * size_of::<SmallVec<[Kept; 1]>>();
        let behind = (self.wanted - self.kept.len().min(self.wanted)) * size_of::<Kept>();
        let places = places + behind + self.wanted * spilled;
        self.reservation
            .try_resize(self.bytes + places + self.values.size())
            .is_ok()
    }

    /// The rows found, and an empty state.
    fn finish(&mut self) -> Result<Option<RecordBatch>> {
        if self.batches.is_empty() {
            return Ok(None);
        }
        self.collect()?;
        self.values = group_values(&self.groups, &self.schema)?;
        self.kept = Vec::new();
        (self.wanted, self.held, self.bytes) = (0, 0, 0);
        self.reservation.free();
        Ok(self.batches.pop())
    }
}

fn group_values(groups: &[Arc<dyn PhysicalExpr>], schema: &SchemaRef) -> Result<Box<dyn GroupValues>> {
    let fields = groups.iter().enumerate().map(|(number, expression)| {
        let kind = expression.data_type(schema)?;
        Ok(Field::new(number.to_string(), kind, true))
    });
    let fields = fields.collect::<Result<Vec<Field>>>()?;
    new_group_values(Arc::new(Schema::new(fields)), &GroupOrdering::None)
}

/// The batch without the texts of rows that it was taken from.
fn compact(batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(|column| match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()) as ArrayRef,
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
        _ => column.clone(),
    });
    Ok(RecordBatch::try_new(batch.schema(), columns.collect())?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{StringArray, UInt64Array};
    use arrow::datatypes::UInt64Type;
    use arrow::util::pretty::pretty_format_batches;
    use datafusion::datasource::memory::MemorySourceConfig;
    use datafusion::physical_plan::collect;
    use proptest::prelude::*;
    use sluice_engine::operator::Cancel;

    use super::*;
    use crate::{Limits, Session};

    fn session(memory: usize) -> Session {
        let limits = Limits {
            threads: 2,
            memory: Some(memory),
            ..Limits::default()
        };
        Session::new(&limits, &Cancel::default()).unwrap()
    }

    fn table(session: &Session, statement: &str) -> String {
        let rows = session.query(statement).unwrap().collect().unwrap();
        pretty_format_batches(&rows).unwrap().to_string()
    }

    /// A window over made-up rows of which a condition on `place` keeps some; the order is total.
    fn statement(rows: u64, groups: u64, order: &str, condition: &str) -> String {
        format!(
            "SELECT g, count(*), sum(v), sum(t * place), min(s), max(s) FROM (
                SELECT *, row_number() OVER (PARTITION BY g, left(s, 1) ORDER BY {order}) AS place FROM (
                    SELECT CAST(value * 7919 % {groups} AS VARCHAR) AS g, nullif(value * 31 % 17, 3) AS t, value AS v,
                        concat('text that is no view of twelve ', value * 13 % 101) AS s
                    FROM generate_series(1, {rows}))
             ) WHERE {condition} GROUP BY g ORDER BY g"
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_rows_are_those_of_the_window(
            rows in 0..30_000_u64,
            groups in 1..3_000_u64,
            most in 1..9_u64,
            form in 0..4_usize,
            order in prop::sample::select(vec!["t, v", "t DESC NULLS FIRST, v DESC", "s, v", "v DESC"]),
        ) {
            let condition = [
                format!("place <= {most}"),
                format!("place < {}", most + 1),
                format!("place = {most}"),
                format!("{most} >= place AND v > 10"),
            ];
            // What the rule does not know: the window runs over all rows.
            let unknown = condition[form].replace("place", "place + 0");
            let session = session(1 << 28);
            let plan = table(&session, &format!("EXPLAIN {}", statement(rows, groups, order, &condition[form])));
            prop_assert!(plan.contains("FirstRowsExec"), "{}", plan);
            prop_assert!(plan.contains("RowNumbersExec"), "{}", plan);
            let found = table(&session, &statement(rows, groups, order, &condition[form]));
            prop_assert_eq!(found, table(&session, &statement(rows, groups, order, &unknown)));
        }
    }

    /// Groups, values in an order that is none, and a text.
    fn made_up(rows: u64) -> RecordBatch {
        let groups = StringArray::from_iter_values((0..rows).map(|row| (row * 7919 % 5_000).to_string()));
        let values = UInt64Array::from_iter_values((0..rows).map(|row| row * 31 % 10_007));
        let fields = [("g", DataType::Utf8), ("v", DataType::UInt64)];
        let fields = fields.map(|(name, kind)| Field::new(name, kind, false));
        RecordBatch::try_new(
            Arc::new(Schema::new(fields.to_vec())),
            vec![Arc::new(groups), Arc::new(values)],
        )
        .unwrap()
    }

    /// How many rows the node lets through, and the least value of every group among them.
    fn let_through(memory: usize, batch: &RecordBatch) -> (usize, BTreeMap<String, u64>) {
        let parts: Vec<RecordBatch> = slices(batch.clone(), 1_000).collect();
        let input = MemorySourceConfig::try_new_exec(&[parts], batch.schema(), None).unwrap();
        let column = |name: &str, at| Arc::new(Column::new(name, at)) as Arc<dyn PhysicalExpr>;
        let order = [PhysicalSortExpr::new_default(column("v", 1))];
        let node = FirstRowsExec::new(input, &[column("g", 0)], &order, 1).unwrap();
        let session = session(memory);
        let rows = session
            .wait(collect(Arc::new(node), session.context().task_ctx()))
            .unwrap();
        let mut least = BTreeMap::new();
        for batch in &rows {
            let (groups, values) = (
                batch.column(0).as_string::<i32>(),
                batch.column(1).as_primitive::<UInt64Type>(),
            );
            for (group, value) in groups.iter().flatten().zip(values.values()) {
                let known = least.entry(group.to_string()).or_insert(*value);
                *known = (*known).min(*value);
            }
        }
        (rows.iter().map(RecordBatch::num_rows).sum(), least)
    }

    #[test]
    fn short_memory_lets_more_through_and_loses_nothing() {
        let batch = made_up(100_000);
        let (rows, least) = let_through(1 << 28, &batch);
        assert_eq!((rows, least.len()), (5_000, 5_000));
        let (more, same) = let_through(1 << 18, &batch);
        assert!(more > rows, "{more}: it never had to start afresh");
        assert_eq!(same, least);
    }
}
