/**
 * The demo on a real and a simulated H200. See `profile/demo.ts`.
 */
import "./support/sources.ts"

await import("./profile/demo.ts")
