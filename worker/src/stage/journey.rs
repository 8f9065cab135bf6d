//! A step on its way through the stages of an epoch, one after the other and back to the head. It is handed on by the lines, so
//! that the engine's thread does other things meanwhile; whatever becomes of it, the engine is woken.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use shoal_common::wire::stage::StageStep;

use super::line::Ask;
use super::replica::Epoch;
use super::ring::Leg;
use crate::backend::Wake;

/// A step that has been everywhere.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) rows: Vec<f32>,
    /// What it took at each stage.
    pub(super) legs: Vec<Leg>,
}

/// The step.
pub(super) struct Journey {
    pub(super) step: StageStep,
    pub(super) rows: Vec<f32>,
    epoch: Arc<Epoch>,
    /// When the stage was asked where it is now.
    pub(super) asked: Instant,
    legs: Vec<Leg>,
    /// Takes one answer: nothing where a stage failed.
    done: SyncSender<Option<Arrived>>,
    wake: Wake,
}

impl fmt::Debug for Journey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journey").field("legs", &self.legs).finish_non_exhaustive()
    }
}

impl Journey {
    pub(super) fn new(
        step: StageStep,
        rows: Vec<f32>,
        epoch: Arc<Epoch>,
        done: SyncSender<Option<Arrived>>,
        wake: Wake,
    ) -> Self {
        Self { step, rows, epoch, asked: Instant::now(), legs: Vec::new(), done, wake }
    }

    /// To the first stage, from a thread that may block. False when its line has ended.
    pub(super) fn begin(self) -> bool {
        let line = self.epoch.lines[0].clone();
        line.ask_blocking(Ask::Step(Box::new(self)))
    }

    /// A stage is done with it: to the next one, or home.
    pub(super) async fn go_on(mut self: Box<Self>, leg: Leg) {
        self.legs.push(leg);
        match self.epoch.lines.get(self.legs.len()).cloned() {
            // A line that has ended drops it, and the engine hears that nothing will come.
            Some(next) => drop(next.ask(Ask::Step(self)).await),
            None => {
                let arrived = Arrived { rows: std::mem::take(&mut self.rows), legs: std::mem::take(&mut self.legs) };
                // The engine may have given up on it.
                let _ = self.done.try_send(Some(arrived));
            }
        }
    }

    /// A stage could not compute it.
    pub(super) fn fail(self) {
        let _ = self.done.try_send(None);
    }
}

impl Drop for Journey {
    fn drop(&mut self) {
        (self.wake)();
    }
}
