//! Plans made functions of their inputs: what depends on the clock, on chance or on the order of rows is refused, and
//! every order that the statement asks for is made total.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError};
use datafusion::logical_expr::expr::{AggregateFunction, Sort as Key, WindowFunction};
use datafusion::logical_expr::{
    Expr, LogicalPlan, LogicalPlanBuilder, Sort, Volatility, WindowFrameUnits, WindowFunctionDefinition,
};
use sluice_engine::{Error, Result};

use crate::catalog::outside;

/// Aggregates whose result depends on the order of the rows.
const ORDERED: [&str; 5] = ["array_agg", "first_value", "last_value", "nth_value", "string_agg"];
/// An aggregate that passes over an order.
const ANY: &str = "any_value";
/// Window functions that treat equal rows alike.
const PEERS: [&str; 4] = ["rank", "dense_rank", "percent_rank", "cume_dist"];
/// Window functions that take the rows of a partition one by one, whatever the frame.
const ONE_BY_ONE: [&str; 4] = ["row_number", "ntile", "lag", "lead"];

/// The plan with total orders: the rows come in the statement's order and, where that leaves ties, in that of the other
/// columns from left to right. Refuses what would still not be a function of the inputs.
pub(crate) fn settle(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        found = refused(node)?;
        Ok(match found {
            Some(_) => TreeNodeRecursion::Stop,
            None => TreeNodeRecursion::Continue,
        })
    })?;
    if let Some(error) = found {
        return Err(outside(error));
    }
    let plan = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Sort(sort) => {
            let expr = total(sort.expr, sort.input.schema());
            Ok(Transformed::yes(LogicalPlan::Sort(Sort { expr, ..sort })))
        }
        LogicalPlan::Window(_) | LogicalPlan::Aggregate(_) => with_ties_broken(node),
        other => Ok(Transformed::no(other)),
    })?;
    let plan = plan.data;
    if sorted(&plan) {
        return Ok(plan);
    }
    let keys = total(Vec::new(), plan.schema());
    match keys.is_empty() {
        true => Ok(plan),
        false => LogicalPlanBuilder::from(plan).sort(keys)?.build(),
    }
}

/// The keys, then every other column of the schema that can be sorted by.
fn total(mut keys: Vec<Key>, schema: &DFSchema) -> Vec<Key> {
    for (qualifier, field) in schema.iter() {
        let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        if sortable(field.data_type()) && !keys.iter().any(|key| key.expr == column) {
            keys.push(column.sort(true, false));
        }
    }
    keys
}

/// Maps have no order in Arrow; columns of them break no ties.
fn sortable(kind: &DataType) -> bool {
    match kind {
        DataType::Map(..) | DataType::Union(..) | DataType::Null => false,
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            sortable(field.data_type())
        }
        DataType::Struct(fields) => fields.iter().all(|field| sortable(field.data_type())),
        _ => true,
    }
}

/// Whether the rows of the plan come in an order that belongs to the statement itself: a sort, of which columns may have
/// been left out and rows cut off.
fn sorted(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Sort(_) => true,
        LogicalPlan::Limit(limit) => sorted(&limit.input),
        LogicalPlan::Projection(projection) => {
            projection.expr.iter().all(|expr| matches!(expr, Expr::Column(_))) && sorted(&projection.input)
        }
        _ => false,
    }
}

/// What of a node depends on more than its inputs' rows.
fn refused(node: &LogicalPlan) -> Result<Option<Error>, DataFusionError> {
    match node {
        LogicalPlan::Limit(limit) if !sorted(&limit.input) => {
            return Ok(Some(unsettled(
                "LIMIT and OFFSET without ORDER BY keep any rows",
                "add ORDER BY, in the same query as LIMIT",
            )));
        }
        LogicalPlan::Distinct(datafusion::logical_expr::Distinct::On(_)) => {
            return Ok(Some(unsettled(
                "DISTINCT ON keeps any of the rows that are equal in its columns",
                "number them, and keep the first: row_number() OVER (PARTITION BY ... ORDER BY ...)",
            )));
        }
        _ => {}
    }
    let mut found = None;
    node.apply_expressions(|expr| {
        expr.apply(|expr| {
            found = found.take().or_else(|| depends(expr));
            Ok(match found {
                Some(_) => TreeNodeRecursion::Stop,
                None => TreeNodeRecursion::Continue,
            })
        })
    })?;
    Ok(found)
}

fn depends(expr: &Expr) -> Option<Error> {
    let chance = |name: &str, volatility: Volatility| {
        (volatility != Volatility::Immutable).then(|| {
            unsettled(
                &format!("\"{name}\" depends on the clock, on chance or on settings"),
                "give the value as a parameter of the pipeline: ${NAME}",
            )
        })
    };
    let rows = |name: &str, hint: &str| {
        let message = format!("\"{name}\" depends on the order of the rows, and none is given");
        Some(unsettled(&message, hint))
    };
    let any = || {
        Some(unsettled(
            &format!("\"{ANY}\" takes the value of any row, whatever the order"),
            "say which: first_value(column ORDER BY ...), or min(column)",
        ))
    };
    match expr {
        Expr::ScalarFunction(call) if call.func.name() == "version" => Some(unsettled(
            "\"version\" depends on the software",
            "give the value as a parameter of the pipeline: ${NAME}",
        )),
        Expr::ScalarFunction(call) => chance(call.func.name(), call.func.signature().volatility),
        Expr::AggregateFunction(call) if call.func.name() == ANY => any(),
        Expr::WindowFunction(call) if call.fun.name() == ANY => any(),
        Expr::AggregateFunction(call) => {
            let name = call.func.name();
            match ORDERED.contains(&name) && call.params.order_by.is_empty() {
                true => rows(name, "say which: FUNCTION(column ORDER BY ...)"),
                false => chance(name, call.func.signature().volatility),
            }
        }
        Expr::WindowFunction(call) => {
            let name = call.fun.name();
            let frame = &call.params.window_frame;
            let whole = frame.start_bound.is_unbounded() && frame.end_bound.is_unbounded();
            let alike = match &call.fun {
                WindowFunctionDefinition::WindowUDF(_) => PEERS.contains(&name),
                WindowFunctionDefinition::AggregateUDF(_) => !ORDERED.contains(&name) && whole,
            };
            match call.params.order_by.is_empty() && !alike {
                true => rows(name, "say which: OVER (... ORDER BY ...)"),
                false => chance(name, call.fun.signature().volatility),
            }
        }
        Expr::ScalarVariable(..) | Expr::Placeholder(_) => Some(unsettled(
            &format!("\"{expr}\" has no value here"),
            "write a parameter of the pipeline: ${NAME}",
        )),
        _ => None,
    }
}

fn unsettled(message: &str, hint: &str) -> Error {
    Error::user(
        "not-a-function",
        format!("{message}: the result would not be a function of the inputs"),
    )
    .hint(hint)
}

/// Window functions and ordered aggregates whose order leaves ties get one that leaves none. Their names say the order,
/// so a projection gives the old ones back.
fn with_ties_broken(node: LogicalPlan) -> Result<Transformed<LogicalPlan>, DataFusionError> {
    let mut changed = false;
    let rebuilt = match &node {
        LogicalPlan::Window(window) => {
            let schema = window.input.schema();
            let expr = window.window_expr.iter().map(|expr| match expr {
                Expr::WindowFunction(call) if one_by_one(call) => {
                    let mut call = call.clone();
                    let known = call.params.order_by.len();
                    call.params.order_by = total(call.params.order_by, schema);
                    changed |= call.params.order_by.len() > known;
                    Expr::WindowFunction(call)
                }
                other => other.clone(),
            });
            let expr: Vec<Expr> = expr.collect();
            LogicalPlanBuilder::from(window.input.clone()).window(expr)?.build()?
        }
        LogicalPlan::Aggregate(aggregate) => {
            let expr = aggregate.aggr_expr.iter().map(|expr| match expr {
                Expr::AggregateFunction(call) if ORDERED.contains(&call.func.name()) => {
                    let mut call = call.clone();
                    changed |= by_value(&mut call);
                    Expr::AggregateFunction(call)
                }
                other => other.clone(),
            });
            let expr: Vec<Expr> = expr.collect();
            LogicalPlan::Aggregate(datafusion::logical_expr::Aggregate::try_new(
                aggregate.input.clone(),
                aggregate.group_expr.clone(),
                expr,
            )?)
        }
        _ => return Ok(Transformed::no(node)),
    };
    if !changed {
        return Ok(Transformed::no(node));
    }
    let columns = rebuilt.schema().iter().zip(node.schema().iter());
    let columns: Vec<Expr> = columns
        .map(|((qualifier, field), (old_qualifier, old))| {
            let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
            match field.name() == old.name() {
                true => column,
                false => column.alias_qualified(old_qualifier.cloned(), old.name()),
            }
        })
        .collect();
    let plan = LogicalPlanBuilder::from(Arc::new(rebuilt)).project(columns)?.build()?;
    Ok(Transformed::yes(plan))
}

/// Whether more keys change nothing but ties: with `RANGE` and `GROUPS` frames equal rows belong together.
fn one_by_one(call: &WindowFunction) -> bool {
    let name = call.fun.name();
    let rows = call.params.window_frame.units == WindowFrameUnits::Rows && !PEERS.contains(&name);
    !call.params.order_by.is_empty() && (rows || ONE_BY_ONE.contains(&name))
}

/// Of rows equal in the order, values that differ are put in theirs; equal ones cannot be told apart.
fn by_value(call: &mut AggregateFunction) -> bool {
    let known = call.params.order_by.len();
    for value in &call.params.args {
        let constant = matches!(value, Expr::Literal(..));
        if !constant && !call.params.order_by.iter().any(|key| key.expr == *value) {
            call.params.order_by.push(value.clone().sort(true, false));
        }
    }
    call.params.order_by.len() > known
}
