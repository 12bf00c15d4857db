"""The log lines of a run."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE rp_run_log_events (
            id BIGINT PRIMARY KEY,
            run_id TEXT NOT NULL,
            message TEXT NOT NULL,
            level TEXT NOT NULL,
            occurred_at TIMESTAMPTZ,
            created_at TIMESTAMPTZ NOT NULL
        );
        CREATE INDEX idx_rp_run_log_events_run_id ON rp_run_log_events (run_id, id);
        CREATE INDEX idx_rp_run_log_events_created_at ON rp_run_log_events (created_at);
    """)


def downgrade() -> None:
    op.execute("DROP TABLE rp_run_log_events")
