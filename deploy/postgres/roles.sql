-- Who may get into the relay's database. As a superuser, in that database, by psql; again does no harm:
--
--   relay_operator   owns the tables: relay migrate, relay erase, persister prune, persister dead-letters
--   relay_web        relay serve
--   relay_persister  persister run
--
-- The passwords are variables of the environment. What each may do with the tables is in grants.sql.

\set ON_ERROR_STOP on
\getenv operator OPERATOR_PASSWORD
\getenv web WEB_PASSWORD
\getenv persister PERSISTER_PASSWORD

-- Roles are those of the whole server: where another database has had this before, they are there.
SELECT format('CREATE ROLE %I', name) FROM unnest(ARRAY['relay_operator', 'relay_web', 'relay_persister']) AS name
WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
ALTER ROLE relay_operator LOGIN PASSWORD :'operator';
ALTER ROLE relay_web LOGIN PASSWORD :'web';
ALTER ROLE relay_persister LOGIN PASSWORD :'persister';

-- What web workers ask for themselves, where nothing is in between; a pooler drops it.
ALTER ROLE relay_web SET statement_timeout = '2500ms';

REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO relay_operator, relay_web, relay_persister;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO relay_operator, relay_web, relay_persister;
GRANT CREATE ON SCHEMA public TO relay_operator;
