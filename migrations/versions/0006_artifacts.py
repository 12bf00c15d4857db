"""The files that a run uploaded."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE rp_artifacts (
            id BIGINT PRIMARY KEY,
            run_id TEXT NOT NULL,
            artifact_type TEXT NOT NULL,
            filename TEXT NOT NULL,
            file_size BIGINT NOT NULL,
            file_type TEXT NOT NULL,
            occurred_at TIMESTAMPTZ,
            created_at TIMESTAMPTZ NOT NULL
        );
        CREATE INDEX idx_rp_artifacts_run_id ON rp_artifacts (run_id, id);
        CREATE INDEX idx_rp_artifacts_created_at ON rp_artifacts (created_at);
    """)


def downgrade() -> None:
    op.execute("DROP TABLE rp_artifacts")
