/**
 * The state of resources.
 *
 * @since 0.1.0
 */

/**
 * Whether a resource can be used. A resource is `closing` while its release waits for the work that uses it.
 *
 * @category models
 * @since 0.1.0
 */
export type ResourceState = "live" | "closing" | "released"
