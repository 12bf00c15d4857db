"""When an event occurred by the pipeline's clock, and when a run was last heard of."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE rp_paper_generation_events ADD COLUMN occurred_at TIMESTAMPTZ;
        ALTER TABLE research_pipeline_run_events ADD COLUMN occurred_at TIMESTAMPTZ;
        ALTER TABLE research_pipeline_runs ADD COLUMN last_heartbeat_at TIMESTAMPTZ;
    """)


def downgrade() -> None:
    op.execute("""
        ALTER TABLE research_pipeline_runs DROP COLUMN last_heartbeat_at;
        ALTER TABLE research_pipeline_run_events DROP COLUMN occurred_at;
        ALTER TABLE rp_paper_generation_events DROP COLUMN occurred_at;
    """)
