/**
 * What every resource of a runtime has.
 *
 * @since 0.1.0
 */

/**
 * Whether a resource can be used: `closing` while its release waits for the work that uses it.
 *
 * @category models
 * @since 0.1.0
 */
export type ResourceState = "live" | "closing" | "released"
