"""The substages that a run completed."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE rp_substage_completed_events (
            id BIGINT PRIMARY KEY,
            run_id TEXT NOT NULL,
            stage TEXT NOT NULL,
            summary JSONB NOT NULL,
            occurred_at TIMESTAMPTZ,
            created_at TIMESTAMPTZ NOT NULL
        );
        CREATE INDEX idx_rp_substage_completed_events_run_id ON rp_substage_completed_events (run_id, id);
        CREATE INDEX idx_rp_substage_completed_events_created_at ON rp_substage_completed_events (created_at);
    """)


def downgrade() -> None:
    op.execute("DROP TABLE rp_substage_completed_events")
