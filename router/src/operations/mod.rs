//! What an operator asks of a running router: who is there, what went wrong with workers lately ([`incidents`]), and who
//! shall take no more groups ([`drains`]). The router builds one [`Operations`] at start; links write to it, `http::cluster`
//! reads it and gives the orders.

pub mod drains;
pub mod incidents;
#[cfg(test)]
mod tests;

use std::time::Instant;

use shoal_common::ambient;
use shoal_common::ids::{Incarnation, Name};

use crate::fleet::FleetView;
use drains::Drains;
use incidents::Incidents;

/// This router as its operator sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Operations {
    /// The cluster's name.
    pub cluster: Name,
    /// This life of the router.
    pub router: Incarnation,
    /// When it began.
    pub started: Instant,
    /// Who serves what.
    pub view: FleetView,
    /// Who was told to drain.
    pub drains: Drains,
    /// What went wrong with workers.
    pub incidents: Incidents,
}

impl Operations {
    /// Of a router that starts now, over the fleet it will have.
    pub fn start(cluster: Name, view: FleetView) -> Self {
        Self {
            cluster,
            router: Incarnation::draw(),
            started: ambient::now(),
            view,
            drains: Drains::default(),
            incidents: Incidents::default(),
        }
    }
}
