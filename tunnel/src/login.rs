//! Who may log in: the users of public ports and of the admin port. And what every port that asks
//! for a secret does with a wrong one.

pub(crate) mod logins;
pub mod users;

pub(crate) use crate::login::logins::{Attempt, LoginPort, LoginRefused, Logins, address};
pub use crate::login::users::{CredentialsError, Presented, User, UserRights, Users};
