-- What each role may do with the tables. As relay_operator, after `relay migrate`; again does no harm.
-- Tables that later migrations make are for reading and, by persisters, for inserting, without running it again.

\set ON_ERROR_STOP on

GRANT SELECT ON ALL TABLES IN SCHEMA public TO relay_web, relay_persister;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO relay_web, relay_persister;

-- Web workers make runs known. What is known already is "updated" to what it is, which is how they learn it.
GRANT INSERT, UPDATE (user_id) ON conversations TO relay_web;
GRANT INSERT, UPDATE (conversation_id) ON research_pipeline_runs TO relay_web;
-- They lock this table for that; before PostgreSQL 17 it takes `GRANT UPDATE` instead.
GRANT MAINTAIN ON research_pipeline_run_events TO relay_web;

-- Persisters only add, but for the state of a run.
GRANT INSERT ON ALL TABLES IN SCHEMA public TO relay_persister;
REVOKE INSERT ON conversations, research_pipeline_runs, alembic_version FROM relay_persister;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT INSERT ON TABLES TO relay_persister;
GRANT UPDATE (status, error_message, finished_at, last_heartbeat_at) ON research_pipeline_runs TO relay_persister;
