-- What the owner's list of invites shows. One with an account is not for a new
-- name: it replaces that account, and goes with it.
ALTER TABLE auth_invite ADD COLUMN note TEXT NOT NULL DEFAULT '' CHECK (length(note) <= 100);
ALTER TABLE auth_invite ADD COLUMN account_id INTEGER REFERENCES auth_account (id) ON DELETE CASCADE;
CREATE INDEX auth_invite_account ON auth_invite (account_id) WHERE account_id IS NOT NULL;
