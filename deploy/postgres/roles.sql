-- Who may get into the relay's database. Once, as a superuser, in that database, by psql:
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

CREATE ROLE relay_operator LOGIN PASSWORD :'operator';
CREATE ROLE relay_web LOGIN PASSWORD :'web';
CREATE ROLE relay_persister LOGIN PASSWORD :'persister';

-- What web workers ask for themselves, where nothing is in between; a pooler drops it.
ALTER ROLE relay_web SET statement_timeout = '2500ms';

REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO relay_operator, relay_web, relay_persister;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO relay_operator, relay_web, relay_persister;
GRANT CREATE ON SCHEMA public TO relay_operator;
