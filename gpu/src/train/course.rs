//! The course of a training: steps, evaluations and states in their order, whatever point it starts from.

use super::checkpoint::{Kind, States};
use super::peers::Team;
use super::*;

/// A training under way.
pub(super) struct Training<'a, 'v, M: Model> {
    config: &'a M::Config,
    options: &'a TrainOptions,
    samples: &'a M::Samples,
    validation: Option<M::Validation<'v>>,
    engine: Engine<M>,
    team: Team<'a>,
    states: Option<States<'a>>,
    run: Run<M>,
    total: usize,
    /// An epoch and its batches.
    batches: (usize, Vec<Vec<u32>>),
}

impl<'a, 'v, M: Model> Training<'a, 'v, M> {
    pub(super) fn new(
        config: &'a M::Config,
        options: &'a TrainOptions,
        engine: Engine<M>,
        samples: &'a M::Samples,
        validation: Option<M::Validation<'v>>,
        checkpoint: Option<Checkpoint<'a>>,
        peers: &'a dyn Peers,
    ) -> Self {
        let total = options.total_steps(samples.count());
        let states = checkpoint.map(|checkpoint| {
            let identity = checkpoint::identity::<M>(config, options, total, engine.name(), samples, validation);
            States::new(checkpoint, identity)
        });
        Training {
            config,
            options,
            samples,
            validation,
            engine,
            team: Team::new(peers, options.replicas),
            states,
            run: Run::default(),
            total,
            batches: (0, vec![]),
        }
    }

    /// Trains to the end. A break, of a peer too, stores the state first.
    pub(super) fn run(mut self, on_event: &mut OnEvent) -> Result<Trained<M>> {
        let stopped = match self.go(on_event) {
            Err(error @ (Error::Interrupted | Error::Peer(_))) => {
                let _ = self.keep(Kind::Periodic, on_event);
                return Err(error);
            }
            other => other?,
        };
        self.keep(Kind::Final, on_event)?;
        self.run.finish(self.engine, stopped)
    }

    fn go(&mut self, on_event: &mut OnEvent) -> Result<Stopped> {
        self.go_on(on_event)?;
        loop {
            if self.owes_evaluation() {
                if self.is_extra(self.run.step) {
                    // What a longer training goes on from has not seen this evaluation.
                    self.keep(Kind::Final, on_event)?;
                }
                self.evaluate(on_event)?;
                self.keep_if_due(on_event)?;
            }
            let patience = self.options.patience;
            if self.validation.is_some() && patience > 0 && self.run.since_best >= patience {
                return Ok(Stopped::Patience);
            }
            if self.run.step == self.total {
                return Ok(Stopped::Finished);
            }
            self.step(on_event)?;
            self.keep_if_due(on_event)?;
        }
    }

    /// Goes on from a stored state, if there is one. The first peer chooses it, so that all have the same.
    fn go_on(&mut self, on_event: &mut OnEvent) -> Result<()> {
        let Some(states) = &mut self.states else {
            return Ok(());
        };
        let mut found = match self.team.is_first() {
            true => states.load::<M>(self.config, self.total, on_event)?,
            false => None,
        };
        let chosen = self.team.hear_first(&states.last())?;
        if !self.team.is_first() && !chosen.is_empty() {
            found = Some(states.follow::<M>(&chosen, self.config)?);
        }
        let Some((run, weights, optimizer)) = found else {
            return Ok(());
        };
        self.engine.restore(weights, optimizer)?;
        self.run = run;
        let step = self.run.step;
        tell(on_event, TrainEvent::Resumed { step })
    }

    fn step(&mut self, on_event: &mut OnEvent) -> Result<()> {
        let root = Key::new(self.options.seed);
        let (step, epoch) = (self.run.step + 1, self.epoch(self.run.step + 1));
        if self.batches.0 != epoch {
            let order = root.child(1).child(epoch as u64);
            let options = self.options;
            let batches = self.samples.batches(options.batch_size, options.bucket_batches, order);
            self.batches = (epoch, batches);
        }
        let accumulate = self.options.accumulate;
        let rows = self
            .batches
            .1
            .chunks(accumulate)
            .nth((step - 1) % self.steps_per_epoch());
        // Batches are numbered over the whole training.
        let noise = |batch: usize| root.child(2).child(((step - 1) * accumulate + batch + 1) as u64);
        let batches = rows.unwrap_or_default().iter().enumerate();
        let batches: Vec<(&[u32], Key)> = batches.map(|(i, rows)| (&rows[..], noise(i))).collect();
        let (lr, clip_norm) = (self.learning_rate(step), self.options.clip_norm);
        let loss = self.engine.step(self.samples, &batches, self.team, lr, clip_norm)?;
        if !loss.is_finite() {
            return Err(Error::NotFinite { step, loss });
        }
        let samples = batches.iter().map(|(rows, _)| rows.len()).sum();
        let samples_per_second = self.run.count(loss, samples);
        let total = self.total;
        tell(
            on_event,
            TrainEvent::Step {
                step,
                total,
                loss,
                samples_per_second,
            },
        )
    }

    fn evaluate(&mut self, on_event: &mut OnEvent) -> Result<()> {
        let key = Key::new(self.options.seed).child(3);
        let metrics = match self.validation {
            Some(validation) => Some(self.measure(validation, key, on_event)?),
            None => None,
        };
        let (epoch, lr) = (self.epoch(self.run.step), self.learning_rate(self.run.step));
        let best = self.run.record(epoch, lr, metrics, &self.engine)?;
        match self.run.curve.last() {
            Some(point) => tell(on_event, TrainEvent::Evaluated { point, best }),
            None => Ok(()),
        }
    }

    /// The two metrics of the validation. The first peer evaluates; it tells the others, so that all decide alike.
    fn measure(&mut self, validation: M::Validation<'v>, key: Key, on_event: &mut OnEvent) -> Result<(f64, f64)> {
        if self.team.is_alone() {
            return self.engine.evaluate(validation, key, on_event);
        }
        let digest = self.engine.digest()?;
        let measured = match self.team.is_first() {
            true => Some(self.engine.evaluate(validation, key, on_event)?),
            false => None,
        };
        self.team.agree(&digest, measured)
    }

    fn owes_evaluation(&self) -> bool {
        let step = self.run.step;
        let due = step > 0 && (step.is_multiple_of(self.options.eval_every) || step == self.total);
        due && !self.run.is_evaluated()
    }

    /// Whether a step is evaluated only because it is the last one.
    fn is_extra(&self, step: usize) -> bool {
        step == self.total && !step.is_multiple_of(self.options.eval_every)
    }

    fn keep_if_due(&mut self, on_event: &mut OnEvent) -> Result<()> {
        if self.states.as_ref().is_some_and(States::is_due) {
            self.keep(Kind::Periodic, on_event)?;
        }
        Ok(())
    }

    /// Stores the state, unless it has seen an evaluation that a longer training would not make. One peer does.
    fn keep(&mut self, kind: Kind, on_event: &mut OnEvent) -> Result<()> {
        let extra = self.is_extra(self.run.step) && self.run.is_evaluated();
        match &mut self.states {
            Some(states) if self.run.step > 0 && !extra && self.team.is_first() => {
                states.save(kind, &self.run, &self.engine, on_event)
            }
            _ => Ok(()),
        }
    }

    fn steps_per_epoch(&self) -> usize {
        self.options.steps_per_epoch(self.samples.count())
    }

    fn epoch(&self, step: usize) -> usize {
        1 + (step - 1) / self.steps_per_epoch()
    }

    fn learning_rate(&self, step: usize) -> f64 {
        let options = self.options;
        options.lr * options.schedule.factor(step, options.warmup_steps, self.total)
    }
}

/// What training has found so far.
pub(super) struct Run<M> {
    /// Steps done.
    pub(super) step: usize,
    pub(super) curve: Vec<CurvePoint>,
    /// The two metrics, step and model of the best evaluation.
    pub(super) best: Option<(f64, f64, usize, M)>,
    pub(super) since_best: usize,
    /// Since the last evaluation: sum of losses, steps, samples.
    pub(super) losses: (f64, usize, usize),
    /// Seconds that went by before this process.
    before: f64,
    start: Instant,
    /// When this process saw its first step since the last evaluation, and the samples before that.
    window: (Instant, usize),
}

impl<M> Default for Run<M> {
    fn default() -> Self {
        Run {
            step: 0,
            curve: vec![],
            best: None,
            since_best: 0,
            losses: (0.0, 0, 0),
            before: 0.0,
            start: Instant::now(),
            window: (Instant::now(), 0),
        }
    }
}

impl<M: Model> Run<M> {
    /// Measures time from here on: `seconds` went by before.
    pub(super) fn resumed(self, seconds: f64) -> Self {
        Run {
            before: seconds,
            window: (Instant::now(), self.losses.2),
            ..self
        }
    }

    /// Seconds since the start, over all processes.
    pub(super) fn seconds(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }

    /// Whether the last step is on the curve.
    pub(super) fn is_evaluated(&self) -> bool {
        self.curve.last().is_some_and(|point| point.step == self.step)
    }

    /// Counts a step and says how many samples per second went through lately.
    fn count(&mut self, loss: f32, samples: usize) -> f64 {
        self.step += 1;
        self.losses.0 += f64::from(loss);
        self.losses.1 += 1;
        self.losses.2 += samples;
        let (since, before) = self.window;
        (self.losses.2 - before) as f64 / since.elapsed().as_secs_f64().max(1e-9)
    }

    /// Adds a point to the curve and keeps the weights if it is the best.
    fn record(&mut self, epoch: usize, lr: f64, metrics: Option<(f64, f64)>, engine: &Engine<M>) -> Result<bool> {
        let better = match (metrics, &self.best) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(found), Some(best)) => found > (best.0, best.1),
        };
        let model = if better { Some(engine.model()?) } else { None };
        self.curve.push(CurvePoint {
            step: self.step,
            epoch,
            train_loss: self.losses.0 / self.losses.1.max(1) as f64,
            valid: metrics,
            lr,
            seconds: self.seconds(),
        });
        self.losses = (0.0, 0, 0);
        self.window = (Instant::now(), 0);
        if metrics.is_some() {
            self.since_best += 1;
        }
        if let (Some((first, second)), Some(model)) = (metrics, model) {
            self.since_best = 0;
            self.best = Some((first, second, self.step, model));
        }
        Ok(better)
    }

    fn finish(self, engine: Engine<M>, stopped: Stopped) -> Result<Trained<M>> {
        let (best_step, model) = match self.best {
            Some((_, _, step, model)) => (step, model),
            None => (self.step, engine.model()?),
        };
        Ok(Trained {
            model,
            best_step,
            curve: self.curve,
            stopped,
        })
    }
}

/// Tells what happened; a break interrupts training.
pub(super) fn tell(on_event: &mut OnEvent, event: TrainEvent) -> Result<()> {
    match on_event(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}
