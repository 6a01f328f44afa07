/**
 * The service of `examples/encoder`. See `encoder/service.ts`.
 */
import "./support/sources.ts"

await import("./encoder/service.ts")
