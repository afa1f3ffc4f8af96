//! Who may log in, and who has: a file of users, and sessions in memory. What a real program has in
//! a database or asks an identity provider for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use moltis_gateway::User;
use moltis_gateway::api::tokens::Scope;
use sha2::{Digest as _, Sha256};

/// Sessions at a time. One more ends the oldest that is found.
const SESSIONS_MAX: usize = 1000;

/// Users with their passwords, and who is logged in.
pub(crate) struct Sessions {
    users: HashMap<String, Account>,
    open: Mutex<HashMap<String, User>>,
}

struct Account {
    user: User,
    password: [u8; 32],
}

impl Sessions {
    /// Reads lines of `name:password:scope,scope`.
    pub(crate) fn of(lines: &str) -> Result<Self, String> {
        let mut users = HashMap::new();
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            let mut parts = line.splitn(3, ':');
            let (Some(name), Some(password), Some(scopes)) =
                (parts.next(), parts.next(), parts.next())
            else {
                return Err("a line of the users is not `name:password:scopes`".to_owned());
            };
            let scopes = scopes.split(',').map(|scope| scope.trim().parse::<Scope>());
            let scopes: Vec<_> = scopes
                .collect::<Result<_, _>>()
                .map_err(|error| format!("the user `{name}`: {error}"))?;
            let user = User::new(name, scopes).map_err(|error| format!("`{name}`: {error}"))?;
            let password = Sha256::digest(password).into();
            users.insert(name.to_owned(), Account { user, password });
        }
        Ok(Self {
            users,
            open: Mutex::default(),
        })
    }

    /// Begins a session, and returns its secret; `None` where name and password are nobody's.
    pub(crate) fn begin(&self, name: &str, password: &str) -> Option<String> {
        let shown: [u8; 32] = Sha256::digest(password).into();
        let account = self.users.get(name)?;
        // All bytes are looked at, however many agree.
        let differs = account.password.iter().zip(shown);
        if differs.fold(0, |sum, (a, b)| sum | (a ^ b)) != 0 {
            return None;
        }
        let mut random = [0; 32];
        getrandom::fill(&mut random).ok()?;
        let secret = URL_SAFE_NO_PAD.encode(random);
        let mut open = self.open();
        if open.len() >= SESSIONS_MAX
            && let Some(one) = open.keys().next().cloned()
        {
            open.remove(&one);
        }
        open.insert(secret.clone(), account.user.clone());
        Some(secret)
    }

    /// Returns whose session this is.
    pub(crate) fn user(&self, secret: &str) -> Option<User> {
        self.open().get(secret).cloned()
    }

    /// Ends a session.
    pub(crate) fn end(&self, secret: &str) {
        self.open().remove(secret);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, User>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
