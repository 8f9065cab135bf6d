//! The book's promises: one by one, and over random worlds.

mod promises;
mod random;
mod world;
