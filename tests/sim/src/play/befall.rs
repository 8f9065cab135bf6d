//! What the faults of a scenario do to the simulation that plays it, and what their ends mend.

use std::time::Duration;

use super::Stage;
use crate::cluster::Host;
use crate::faults::{Fault, Link, Way};
use crate::net::Weather;

impl Stage<'_> {
    pub(super) fn begin(&mut self, fault: Fault) {
        self.say(format_args!("{fault}"));
        match fault {
            Fault::WorkerCrash(worker) => self.crash(Host::Worker(worker)),
            Fault::RouterCrash(router) => self.crash(Host::Router(router)),
            Fault::WorkerDrain(worker) => self.stop(Host::Worker(worker)),
            Fault::RouterStop(router) => self.stop(Host::Router(router)),
            Fault::Cut(link, way) => {
                let (router, worker) = names(link);
                match way {
                    Way::Both => self.sim.partition(router, worker),
                    Way::ToWorker => self.sim.partition_oneway(router, worker),
                    Way::ToRouter => self.sim.partition_oneway(worker, router),
                }
            }
            Fault::Hold(link) => {
                let (router, worker) = names(link);
                self.sim.hold(router, worker);
            }
            Fault::Rough(link, weather) => self.set_weather(link, weather),
            Fault::Slow(link, latency) => self.set_latency(link, latency),
        }
    }

    pub(super) fn end(&mut self, fault: Fault) {
        self.say(format_args!("no more: {fault}"));
        match fault {
            Fault::WorkerCrash(worker) | Fault::WorkerDrain(worker) => {
                self.down.insert(Host::Worker(worker));
            }
            Fault::RouterCrash(router) | Fault::RouterStop(router) => {
                self.down.insert(Host::Router(router));
            }
            Fault::Cut(link, Way::Both) => {
                let (router, worker) = names(link);
                self.sim.repair(router, worker);
            }
            Fault::Cut(link, Way::ToWorker) => {
                let (router, worker) = names(link);
                self.sim.repair_oneway(router, worker);
            }
            Fault::Cut(link, Way::ToRouter) => {
                let (router, worker) = names(link);
                self.sim.repair_oneway(worker, router);
            }
            Fault::Hold(link) => {
                let (router, worker) = names(link);
                self.sim.release(router, worker);
            }
            Fault::Rough(link, _) => self.set_weather(link, Weather::default()),
            Fault::Slow(link, _) => self.set_latency(link, self.scenario.shape.latency),
        }
    }

    fn crash(&mut self, host: Host) {
        // It may have been about to start again after a drain that lasted.
        self.down.remove(&host);
        // First: what the books hold of it must not outlive it.
        self.world.books.borrow_mut().lives.remove(&host);
        self.sim.crash(host.name());
    }

    pub(super) fn stop(&mut self, host: Host) {
        self.down.remove(&host);
        if let Some(life) = self.world.books.borrow().lives.get(&host) {
            life.trigger.fire();
        }
    }

    /// Starts what is down and may run again, once it has ended.
    pub(super) fn restart(&mut self, now: Duration) {
        for host in std::mem::take(&mut self.down) {
            if self.sim.is_host_running(host.name()) {
                self.down.insert(host);
                continue;
            }
            self.say(format_args!("{} is started again", host.name()));
            self.sim.bounce(host.name());
            // A drain may have lasted longer than was planned.
            let its = |fault: Fault| match fault {
                Fault::WorkerDrain(worker) => host == Host::Worker(worker),
                Fault::RouterStop(router) => host == Host::Router(router),
                _ => false,
            };
            if let Some(planned) = self.past.iter_mut().rev().find(|planned| its(planned.fault)) {
                planned.until = planned.until.max(now);
            }
        }
    }

    fn set_weather(&self, Link { router, worker }: Link, weather: Weather) {
        let at = |host: Host| self.sim.lookup(host.name());
        let (router, worker) = (at(Host::Router(router)), at(Host::Worker(worker)));
        self.sky.set(router, worker, weather);
        self.sky.set(worker, router, weather);
    }

    fn set_latency(&self, link: Link, latency: Duration) {
        let (router, worker) = names(link);
        self.sim.set_link_max_message_latency(router, worker, latency);
    }
}

fn names(link: Link) -> (String, String) {
    (Host::Router(link.router).name(), Host::Worker(link.worker).name())
}
