//! `row_number()` over rows that are sorted already: one pass that compares neighbours.
//!
//! The window operator of DataFusion keeps a state for every group; with a million users that is most of the time.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::compute::partition;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::window::{StandardWindowExpr, WindowExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::InputOrderMode;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowUDFExpr};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, InputDistributionRequirements, PlanProperties,
    ReplaceChildrenOptions, SendableRecordBatchStream, apply_expression_roots,
};
use futures_util::StreamExt;

/// Puts [`RowNumbersExec`] where a window is nothing but one `row_number()` over sorted rows.
#[derive(Debug)]
pub(crate) struct RowNumbers;

impl PhysicalOptimizerRule for RowNumbers {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| match node.downcast_ref().and_then(RowNumbersExec::of) {
            Some(numbers) => Ok(Transformed::yes(Arc::new(numbers) as Arc<dyn ExecutionPlan>)),
            None => Ok(Transformed::no(node)),
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "RowNumbers"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Whether a window function is `row_number()`.
pub(crate) fn is_row_number(window: &dyn WindowExpr) -> bool {
    let standard = window.as_any().downcast_ref::<StandardWindowExpr>();
    let function = standard.and_then(|window| window.get_standard_func_expr().as_any().downcast_ref::<WindowUDFExpr>());
    function.is_some_and(|function| function.fun().name() == "row_number")
}

/// Whether there are groups, of types that all ways to compare them tell apart alike: 0.0 and -0.0 may be one group or two,
/// and what the window says of that stays.
pub(crate) fn are_compared_alike(groups: &[Arc<dyn PhysicalExpr>], schema: &Schema) -> bool {
    let alike = |group: &Arc<dyn PhysicalExpr>| {
        let kind = group.data_type(schema);
        kind.is_ok_and(|kind| !kind.is_floating() && !kind.is_nested())
    };
    !groups.is_empty() && groups.iter().all(alike)
}

/// The input with the number of each row in its group, from 1.
#[derive(Clone, Debug)]
struct RowNumbersExec {
    input: Arc<dyn ExecutionPlan>,
    groups: Vec<Arc<dyn PhysicalExpr>>,
    /// Those of the window that it stands for.
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl RowNumbersExec {
    fn of(window: &BoundedWindowAggExec) -> Option<Self> {
        let [ranking] = window.window_expr() else { return None };
        let groups = ranking.partition_by();
        let alike = are_compared_alike(groups, &window.input().schema());
        let sorted = window.input_order_mode == InputOrderMode::Sorted;
        (alike && sorted && is_row_number(ranking.as_ref())).then(|| RowNumbersExec {
            input: window.input().clone(),
            groups: groups.to_vec(),
            properties: window.properties().clone(),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }
}

impl DisplayAs for RowNumbersExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let groups: Vec<String> = self.groups.iter().map(ToString::to_string).collect();
        write!(f, "RowNumbersExec: groups=[{}]", groups.join(", "))
    }
}

impl ExecutionPlan for RowNumbersExec {
    fn name(&self) -> &'static str {
        "RowNumbersExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::KeyPartitioned(self.groups.clone())])
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
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
        let numbers = RowNumbersExec {
            input,
            ..self.as_ref().clone()
        };
        Ok(Arc::new(numbers))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        replace_children_if_necessary(self, children)
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        apply_expression_roots(self.groups.iter(), f)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let fields = self.groups.iter().map(|group| {
            let kind = group.data_type(&self.input.schema())?;
            Ok(SortField::new(kind))
        });
        let mut numbering = Numbering {
            schema: self.schema(),
            groups: self.groups.clone(),
            converter: RowConverter::new(fields.collect::<Result<_>>()?)?,
            last: None,
        };
        let measured = BaselineMetrics::new(&self.metrics, partition);
        let numbered = input.map(move |batch| {
            let batch = numbering.add(&batch?)?;
            measured.record_output(batch.num_rows());
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), numbered)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// Numbers rows, batch after batch.
struct Numbering {
    schema: SchemaRef,
    groups: Vec<Arc<dyn PhysicalExpr>>,
    converter: RowConverter,
    /// Group and number of the last row.
    last: Option<(OwnedRow, u64)>,
}

impl Numbering {
    fn add(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let values = self.groups.iter().map(|group| group.evaluate(batch)?.into_array(rows));
        let values: Vec<ArrayRef> = values.collect::<Result<_>>()?;
        let mut numbers = Vec::with_capacity(rows);
        if rows > 0 {
            let ranges = partition(&values)?.ranges();
            let first = self.row(&values, 0)?;
            let carried = self.last.take().filter(|(group, _)| *group == first);
            let mut before = carried.map_or(0, |(_, number)| number);
            for range in ranges {
                numbers.extend(before + 1..=before + range.len() as u64);
                before = 0;
            }
            self.last = Some((self.row(&values, rows - 1)?, numbers[rows - 1]));
        }
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(UInt64Array::from(numbers)));
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }

    fn row(&self, values: &[ArrayRef], row: usize) -> Result<OwnedRow> {
        let values: Vec<ArrayRef> = values.iter().map(|values| values.slice(row, 1)).collect();
        Ok(self.converter.convert_columns(&values)?.row(0).owned())
    }
}
