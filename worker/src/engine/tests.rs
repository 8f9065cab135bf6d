//! The engine's promises, turn by turn on the test's own thread: nothing here waits for a clock.

mod backend;
mod bench;
mod promises;
