//! Who may log in: the users of public ports and of the admin port.

pub mod users;

pub use crate::login::users::{CredentialsError, Presented, User, UserRights, Users};
